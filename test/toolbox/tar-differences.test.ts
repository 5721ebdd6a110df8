import { spawnSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { isBackupError } from '../../src/protocol/errors.ts';
import { TarReader } from '../../src/toolbox/tar-reader.ts';
import { block } from './support/tar-archive.ts';
import { friendly } from './support/tar-cases.ts';

let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'tar-differences-'));
});
afterAll(async () => {
  await rm(directory, { recursive: true });
});

const words = ['\0', '/', '..', '\n', '0', '7', ' ', 'L', 'K', 'g', 'S', 'x', '\x80', '\xff', '+'];
const texts = ['ustar\0', 'ustar  \0', 'GNU.sparse.name=', 'path=', 'size=', '00000001000'];
const fields = [
  0, 3, 99, 124, 130, 135, 156, 157, 257, 262, 345, 386, 398, 475, 482, 483, 512, 530,
];
interface Change {
  header: number;
  at: number;
  text: string;
}
const change: fc.Arbitrary<Change> = fc.record({
  header: fc.nat(30),
  at: fc.oneof(fc.constantFrom(...fields), fc.nat(block + 100)),
  text: fc.constantFrom(...words, ...texts),
});

/** Writes into a header or what follows it, and mends its checksum. */
function changed(archive: Buffer, { header, at, text }: Change): void {
  const headers: number[] = [];
  for (let start = 0; start < archive.length; start += block) {
    if (archive.toString('latin1', start + 257, start + 262) === 'ustar') headers.push(start);
  }
  const start = headers[header % headers.length] ?? 0;
  archive.write(text, start + at, 'latin1');
  archive.write(' '.repeat(8), start + 148);
  const sum = archive.subarray(start, start + block).reduce((all, byte) => all + byte, 0);
  archive.write(`${sum.toString(8).padStart(6, '0')}\0 `, start + 148, 'latin1');
}

function namesOf(archive: Buffer): Buffer | undefined {
  const names: Buffer[] = [];
  const reader = new TarReader('a.tar', {
    member: ({ name }) => names.push(name, Buffer.from('\n')),
    body: () => undefined,
  });
  try {
    reader.push(archive);
    reader.end();
    return Buffer.concat(names);
  } catch (error) {
    if (!isBackupError(error)) throw error;
    return undefined;
  }
}

test('what is accepted has the names that GNU tar sees, whatever is changed in it', async () => {
  const path = join(directory, 'a.tar');
  let accepted = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.nat(friendly.length - 1),
      fc.array(change, { minLength: 1, maxLength: 2 }),
      async (index, changes) => {
        const archive = Buffer.from(friendly[index]?.[1] ?? '');
        for (const each of changes) changed(archive, each);
        const names = namesOf(archive);
        if (names === undefined) return;
        accepted++;
        await writeFile(path, archive);
        const theirs = spawnSync('tar', ['-tf', path, '--quoting-style=literal']);
        expect(theirs.stdout).toEqual(names);
      },
    ),
    { numRuns: 400 },
  );
  expect(accepted).toBeGreaterThan(50);
});
