import { execFileSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { list } from 'tar/list';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { isBackupError } from '../../src/protocol/errors.ts';
import { checkTar, TarCheck } from '../../src/toolbox/tar-check.ts';
import { LogLines } from './support/log.ts';
import * as tar from './support/tar-archive.ts';
import { data, file, friendly, hostile, sparse1, sparseBody } from './support/tar-cases.ts';

const { container, member, block } = tar;
const options = { log: new LogLines(), signal: new AbortController().signal };
let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'tar-check-'));
});
afterAll(async () => {
  await rm(directory, { recursive: true });
});

/** What the check says of an archive that comes in pieces cut at these places. */
function outcome(archive: Buffer, cuts: readonly number[] = []): string {
  const check = new TarCheck('a.tar');
  try {
    let at = 0;
    for (const cut of [...cuts, archive.length]) {
      check.push(archive.subarray(at, cut));
      at = cut;
    }
    const { entries, devices, deviceCount } = check.end();
    return JSON.stringify([entries, devices.map(String), deviceCount]);
  } catch (error) {
    if (!isBackupError(error)) throw error;
    return error.message;
  }
}

describe('tar check', () => {
  test.each(hostile)('refuses %s', (_name, archive, why) => {
    expect(outcome(archive)).toMatch(why);
    expect(outcome(archive)).toMatch(/^the archive a\.tar cannot be restored: [ -~…]+$/);
  });

  test.each(friendly)('accepts %s', (_name, archive, devices = []) => {
    const [, found, count] = JSON.parse(outcome(archive));
    expect([found, count]).toEqual([devices, devices.length]);
  });

  test('cut points never change the outcome', () => {
    const archives = [...hostile, ...friendly].map(([, archive]) => archive);
    const whole = archives.map((archive) => outcome(archive));
    const anyCuts = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 30 });
    fc.assert(
      fc.property(fc.nat(archives.length - 1), anyCuts, (index, places) => {
        const archive = archives[index] ?? tar.end;
        const cuts = places.map((at) => Math.floor(at * archive.length)).sort((a, b) => a - b);
        expect(outcome(archive, cuts)).toBe(whole[index]);
      }),
      { numRuns: 500 },
    );
  });

  test('refuses whatever lacks its end', () => {
    for (const [, archive] of friendly) {
      const check = new TarCheck('a.tar');
      for (let at = 0; at < archive.length; at += block / 2) {
        expect(() => check.end()).toThrow(/cut off|is empty/);
        check.push(archive.subarray(at, at + block / 2));
      }
      expect(check.end().entries).toBeGreaterThan(10);
    }
  });

  test('an extended header is bounded', () => {
    const size = 16 * 1024 * 1024 + 1;
    const large = container(tar.header({ name: 'x', type: 'x', size }), data(1));
    expect(outcome(large)).toMatch(/larger than 16 MiB/);
  });

  test('GNU tar and the tar package see different names of a sparse file', async () => {
    const path = join(directory, 'names.tar');
    await writeFile(
      path,
      container(sparse1(['GNU.sparse.name', '../evil']), member({ name: './ok' }, sparseBody)),
    );
    const names: string[] = [];
    await list({ file: path, onReadEntry: (entry) => names.push(entry.path) });
    const theirs = execFileSync('tar', ['-tf', path], { encoding: 'utf8' });
    expect([names.includes('./ok'), names.includes('../evil')]).toEqual([true, false]);
    expect([theirs.includes('./ok\n'), theirs.includes('../evil\n')]).toEqual([false, true]);
    await expect(checkTar(path, options)).rejects.toThrow(/climbs out/);
  });

  test('says how to get at the files, unless there is nothing to read', () => {
    expect(outcome(container(file('./dumpdir', { type: 'D' })))).toMatch(
      /by hand as the README says$/,
    );
    expect(outcome(container().subarray(0, block))).toMatch(
      /its end is missing, at or after "\.\/"$/,
    );
    expect(outcome(container(data(1)))).not.toMatch(/README/);
  });

  test('a name cannot forge lines of the log', () => {
    const message = outcome(container(file('../a\n\x1b[31mb')));
    expect(message).toMatch(/"\.\.\/a\\n\\u001b\[31mb"/);
  });
});
