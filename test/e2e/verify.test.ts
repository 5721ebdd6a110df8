import { readdir, readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { runCli } from '../cli/node-root.ts';
import { flipBit } from '../providers/directory/verify-support.ts';
import { type Backup, type Bench, MiB, startBench } from './support/bench.ts';

interface ListEntry {
  readonly volid: string;
  readonly verification?: { readonly state: string; readonly upid: string };
}

let bench: Bench;

beforeAll(async () => {
  bench = await startBench({ disks: [{ device: 'drive-scsi0', size: 24 * MiB, seed: 1 }] });
});

afterAll(() => bench.close());

async function backUp(): Promise<Backup> {
  const backup = await bench.backUp();
  expect(backup.exitCode, backup.log).toBe(0);
  return backup;
}

const verify = (...args: string[]) =>
  runCli(['verify', 'vault', ...args, '--root', bench.node.root]);

/** Per archive what `pvesm list` shows. */
async function listed(): Promise<(string | undefined)[]> {
  const list = await bench.node.pvesmJson<ListEntry[]>(['list', 'vault']);
  return list.map(({ verification }) => verification?.state);
}

/** The file of a chunk that both archives have. */
async function sharedChunk(...backups: Backup[]): Promise<string> {
  const [first = [], second = []] = await Promise.all(
    backups.map(async ({ volid }): Promise<string[]> => {
      const archive = join(bench.store, volid.replace('vault:backup/', ''));
      const hex = (await readFile(join(archive, 'drive-scsi0.index'))).toString('hex');
      return hex.match(/.{64}/g) ?? [];
    }),
  );
  const shared = first.find((hex) => second.includes(hex) && !/^0+$/.test(hex)) ?? '';
  const directory = join(bench.store, 'chunks', shared.slice(0, 2));
  const [file = ''] = (await readdir(directory)).filter((name) => name.startsWith(shared));
  return join(directory, file);
}

test('damage is found, listed by pvesm, and healed by the next backup of the running VM', async () => {
  const first = await backUp();
  await bench.vm.write('drive-scsi0', 8 * MiB, { pattern: 0x11, length: 4 * MiB });
  const second = await backUp();
  expect(await listed()).toEqual([undefined, undefined]);
  expect((await verify()).status).toBe(0);
  expect(await listed()).toEqual(['ok', 'ok']);

  const chunk = await sharedChunk(first, second);
  await flipBit(chunk);
  // Verifying one tells of both.
  const found = await verify('--json', first.volid);
  expect(found.status, found.stderr).toBe(1);
  expect(found.stdout).toContain(basename(chunk, '.br'));
  expect(await listed()).toEqual(['failed', 'failed']);
  await expect(stat(chunk)).rejects.toThrow('ENOENT');

  const third = await backUp();
  expect(third.dirtyBytes).toBe(24 * MiB);
  const healed = await verify();
  expect(healed.status, healed.stdout).toBe(0);
  expect(await listed()).toEqual(['ok', 'ok', 'ok']);
  for (const backup of [first, second, third]) {
    expect(await bench.restore(backup)).toMatchObject({ exitCode: 0, differing: [] });
  }
  const fourth = await backUp();
  expect(fourth.dirtyBytes).toBe(0);
});
