import { access, mkdir, readdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { acquireLock } from '../../../src/toolbox/lock.ts';
import {
  backUp,
  chunk,
  chunkFiles,
  filesIn,
  listNames,
  MemoryVolume,
  makeStorage,
  type Opened,
  openStorage,
  patterned,
  removeArchive,
  restore,
} from './setup.ts';

const job = { startTime: new Date() };
const diskOf = (...seeds: number[]) => Buffer.concat(seeds.map((seed) => patterned(chunk, seed)));
const backUpOf = async (storage: Opened, ...seeds: number[]) =>
  (await backUp(storage, [new MemoryVolume('drive-scsi0', diskOf(...seeds))])).backup.archiveName;
const flags = async (path: string) =>
  (await readdir(join(path, '.pve-backup-bridge'))).filter((name) => name.startsWith('sweep-'));

test('D7: removal only hides; another process frees the space', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const name = await backUpOf(storage, 1, 2);
  await (await provider.archive(name)).remove();
  expect(await listNames(provider)).toEqual([]);
  expect(await readdir(join(path, '100'))).toEqual([`${name.slice(4)}.removed`]);
  expect(await chunkFiles(path)).toHaveLength(2);
  await (await openStorage(path)).provider.reclaim?.();
  expect(await readdir(join(path, '100'))).toEqual([]);
  expect(await chunkFiles(path)).toEqual([]);
  expect(await flags(path)).toEqual([]);
});

test.each(['sweep-wanted', 'sweep-begun'])(
  'chunks that a removal left when it died are found by %s',
  async (flag) => {
    const storage = await makeStorage();
    const { provider, path } = storage;
    const name = await backUpOf(storage, 1);
    const stray = join(path, 'chunks', 'ab');
    await mkdir(stray, { recursive: true });
    await writeFile(join(stray, `ab${'0'.repeat(62)}`), 'of nobody');
    await provider.startJob?.(job);
    await provider.endJob?.();
    expect(await chunkFiles(path)).toHaveLength(2);
    await writeFile(join(path, '.pve-backup-bridge', flag), '');
    await provider.startJob?.(job);
    expect(await chunkFiles(path)).toHaveLength(1);
    expect(await flags(path)).toEqual([]);
    expect((await restore(provider, name, 'drive-scsi0')).equals(diskOf(1))).toBe(true);
  },
);

test('what is removed while a sweep runs is left to the next, and not forgotten', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const other = await openStorage(path);
  const kept = await backUpOf(storage, 1);
  const names = [await backUpOf(storage, 2), await backUpOf(storage, 3)];
  // Removals and sweeps of two processes, in whatever order they come.
  await Promise.all([
    removeArchive(provider, names[0] ?? ''),
    removeArchive(other.provider, names[1] ?? ''),
  ]);
  await provider.reclaim?.();
  expect(await chunkFiles(path)).toHaveLength(1);
  expect(await filesIn(join(path, '100'))).toHaveLength(3);
  expect((await restore(provider, kept, 'drive-scsi0')).equals(diskOf(1))).toBe(true);
});

test('B10: within a job the space of chunks is freed at its end, that of directories at once', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const name = await backUpOf(storage, 1, 2);
  await provider.startJob?.(job);
  await removeArchive(provider, name);
  expect(await readdir(join(path, '100'))).toEqual([]);
  const { total, available } = await provider.status();
  expect(await chunkFiles(path)).toHaveLength(available > total * 0.1 ? 2 : 0);
  await provider.endJob?.();
  expect(await chunkFiles(path)).toEqual([]);
});

test('removal waits for who protects archives, and then refuses', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const name = await backUpOf(storage, 1);
  const lock = await acquireLock(join(path, '.pve-backup-bridge/protection-lock'), 'exclusive');
  const removal = (await provider.archive(name)).remove();
  const refused = expect(removal).rejects.toThrow(/is protected/);
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(await listNames(provider)).toEqual([name]);
  await writeFile(join(path, name, 'protected'), '');
  await lock?.release();
  await refused;
  expect(await listNames(provider)).toEqual([name]);
});

test('while leftovers wait because the store is in use, that is said once', async () => {
  const storage = await makeStorage();
  const { provider, path, log } = storage;
  const other = await openStorage(path);
  const name = await backUpOf(storage, 1);
  const dead = await backUpOf(storage, 2);
  await rename(join(path, dead), join(path, `${dead}.partial`));
  const opened = await (await other.provider.archive(name)).restoreVm?.();
  await provider.startJob?.(job);
  await removeArchive(provider, name);
  await provider.endJob?.();
  const said = () => log.lines.filter((line) => line.includes('backups or restores are running'));
  expect(said()).toHaveLength(1);
  await opened?.close();
  await provider.reclaim?.();
  expect(await filesIn(join(path, '100'))).toEqual([]);
  expect(await chunkFiles(path)).toEqual([]);
  expect(said()).toHaveLength(1);
});

test('`pvesm add` makes the store ready, and refuses that of another cluster', async () => {
  const { provider, path } = await makeStorage();
  await provider.setUp?.();
  await provider.setUp?.();
  await access(join(path, '.pve-backup-bridge/store.json'));
  const stranger = await openStorage(path, {}, 'cluster two');
  await expect(stranger.provider.setUp?.()).rejects.toThrow(/belongs to cluster one/);
});
