import { execFile } from 'node:child_process';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, onTestFinished, test } from 'vitest';
import {
  backUp,
  chunk,
  listNames,
  MemoryVolume,
  makeTemporary,
  openStorage,
  patterned,
  removeArchive,
  restore,
} from './setup.ts';

const run = promisify(execFile);

/** A file system of its own of a few MiB. */
async function makeSmallStore(size: string): Promise<string> {
  const path = await makeTemporary();
  await run('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', path]);
  onTestFinished(async () => {
    await run('umount', [path]);
  });
  return path;
}

test('a full store: a clear error, nothing listed, earlier archives intact, the next backup is right', async () => {
  const path = await makeSmallStore('30m');
  const storage = await openStorage(path, { 'bridge-dir-compression': 'none' });
  const { provider } = storage;
  const disk = patterned(3 * chunk, 1);
  const first = await backUp(storage, [new MemoryVolume('drive-scsi0', disk)]);
  const { available } = await provider.status();
  const large = patterned(8 * chunk, 2);
  for (let at = 0; at < large.length; at += chunk) large.writeUInt32LE(at + 7, at);
  const failing = backUp(storage, [new MemoryVolume('drive-scsi0', large)], { vmid: 101 });
  await expect(failing).rejects.toThrow(
    /cannot back up VM 101: the store .* is full: remove or prune/,
  );
  expect(await listNames(provider)).toEqual([first.backup.archiveName]);
  expect(await readdir(join(path, '101'))).toEqual([]);
  // The space is there again at once, for the next guest of the job.
  expect((await provider.status()).available).toBeGreaterThanOrEqual(available - 64 * 1024);
  const content = await restore(provider, first.backup.archiveName, 'drive-scsi0');
  expect(content.equals(disk)).toBe(true);
  const small = large.subarray(0, 2 * chunk);
  const next = await backUp(storage, [new MemoryVolume('drive-scsi0', small)], { vmid: 101 });
  const restored = await restore(provider, next.backup.archiveName, 'drive-scsi0');
  expect(restored.equals(small)).toBe(true);
  await removeArchive(provider, first.backup.archiveName);
  expect((await provider.status()).available).toBeGreaterThan(available);
});
