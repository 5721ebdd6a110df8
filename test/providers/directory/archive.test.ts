import { mkdir, rename, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
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

const diskOf = (...seeds: number[]) => Buffer.concat(seeds.map((seed) => patterned(chunk, seed)));
const backUpOf = (storage: Opened, ...seeds: number[]) =>
  backUp(storage, [new MemoryVolume('drive-scsi0', diskOf(...seeds))]);

test('D5, D6: an archive is listed with what PVE shows of it', async () => {
  const storage = await makeStorage();
  const startTime = new Date('2026-11-23T10:06:42Z');
  const disks = [new MemoryVolume('drive-scsi0', diskOf(1))];
  const { archiveSize } = await backUp(storage, disks, { startTime, vmid: 123 });
  expect(await storage.provider.listArchives({ vmid: 123 })).toEqual([
    {
      name: '123/qemu-2026-11-23T10:06:42Z',
      vmid: 123,
      vmtype: 'qemu',
      startTime,
      size: archiveSize,
      protected: false,
    },
  ]);
  expect(await storage.provider.listArchives({ vmid: 12 })).toEqual([]);
});

test('D6: the size is what a restore writes, also where the store had every chunk', async () => {
  const storage = await makeStorage();
  await backUpOf(storage, 1);
  const { archiveSize } = await backUpOf(storage, 1);
  expect(archiveSize).toBe(diskOf(1).length);
  for (const { size } of await storage.provider.listArchives({})) expect(size).toBe(archiveSize);
});

test('D8: notes and protection are set, changed and removed', async () => {
  const storage = await makeStorage();
  const { provider } = storage;
  const { archiveName } = (await backUpOf(storage, 1)).backup;
  const info = async () => (await provider.archive(archiveName)).info;
  const archive = await provider.archive(archiveName);
  await archive.setNotes('Grüße,\nΩ 🙂');
  expect((await info()).notes).toBe('Grüße,\nΩ 🙂');
  await archive.setNotes('');
  await archive.setNotes('');
  expect('notes' in (await info())).toBe(false);
  await archive.setProtected(true);
  await archive.setProtected(true);
  expect((await info()).protected).toBe(true);
  await expect(archive.remove()).rejects.toThrow(/is protected/);
  await archive.setProtected(false);
  await archive.setProtected(false);
  expect((await info()).protected).toBe(false);
  await archive.remove();
  expect(await listNames(provider)).toEqual([]);
});

test('notes go to committed archives only', async () => {
  const storage = await makeStorage();
  const { archiveName } = (await backUpOf(storage, 1)).backup;
  const archive = await storage.provider.archive(archiveName);
  await archive.remove();
  await expect(archive.setNotes('too late')).rejects.toThrow(/cannot change archive/);
  expect((await filesIn(storage.path)).filter((file) => file.includes('notes'))).toEqual([]);
});

test('removal frees the chunks that no other archive has, and only these', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const first = await backUpOf(storage, 1, 2, 3);
  const second = await backUpOf(storage, 2, 3, 4);
  expect(await chunkFiles(path)).toHaveLength(4);
  await removeArchive(provider, first.backup.archiveName);
  expect(await chunkFiles(path)).toHaveLength(3);
  const content = await restore(provider, second.backup.archiveName, 'drive-scsi0');
  expect(content.equals(diskOf(2, 3, 4))).toBe(true);
  await removeArchive(provider, second.backup.archiveName);
  expect(await chunkFiles(path)).toEqual([]);
  expect(await filesIn(join(path, '100'))).toEqual([]);
});

test('while a backup or a restore runs no chunk goes; the end of the job frees the space', async () => {
  const storage = await makeStorage();
  const other = await openStorage(storage.path);
  const { backup } = await backUpOf(storage, 1, 2);
  const { backup: kept } = await backUpOf(storage, 5);
  const opened = await (await other.provider.archive(backup.archiveName)).restoreVm?.();
  const image = await opened?.openVolume('drive-scsi0');
  await removeArchive(storage.provider, backup.archiveName);
  expect(await listNames(storage.provider)).toEqual([kept.archiveName]);
  expect(await chunkFiles(storage.path)).toHaveLength(3);
  const bytes = await image?.read(chunk, chunk);
  expect(Buffer.from(bytes ?? []).equals(patterned(chunk, 2))).toBe(true);
  await opened?.close();
  await opened?.close();
  await other.provider.endJob?.();
  expect(await chunkFiles(storage.path)).toHaveLength(1);
});

test('what a running backup has stored is not swept away', async () => {
  const storage = await makeStorage();
  const other = await openStorage(storage.path);
  const { backup } = await backUpOf(storage, 9);
  const disk = diskOf(1, 2, 3, 4);
  const volume = new MemoryVolume('drive-scsi0', disk);
  const read = volume.read.bind(volume);
  let removal: Promise<void> | undefined;
  volume.read = async (offset, length) => {
    if (offset === 3 * chunk) {
      removal = removeArchive(other.provider, backup.archiveName);
      await removal;
    }
    return read(offset, length);
  };
  const done = await backUp(storage, [volume]);
  expect(removal).toBeDefined();
  const content = await restore(storage.provider, done.backup.archiveName, 'drive-scsi0');
  expect(content.equals(disk)).toBe(true);
});

test('a half-removed archive is hidden at once and gone with the next job', async () => {
  const storage = await makeStorage();
  const { archiveName } = (await backUpOf(storage, 1)).backup;
  const path = join(storage.path, archiveName);
  await rename(path, `${path}.removed`);
  expect(await listNames(storage.provider)).toEqual([]);
  await storage.provider.startJob?.({ startTime: new Date() });
  expect(await filesIn(join(storage.path, '100'))).toEqual([]);
  expect(await chunkFiles(storage.path)).toEqual([]);
});

test('nothing is swept where a link may hide archives', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const { backup } = await backUpOf(storage, 1);
  await mkdir(join(path, 'elsewhere'));
  await symlink('elsewhere', join(path, '200'));
  await expect(removeArchive(provider, backup.archiveName)).rejects.toThrow(
    /200 is a symbolic link/,
  );
  expect(await chunkFiles(path)).toHaveLength(1);
});

test('the sweep removes what dead writers left and leaves unknown files alone', async () => {
  const storage = await makeStorage();
  const { backup } = await backUpOf(storage, 1);
  const [file = ''] = await chunkFiles(storage.path);
  await writeFile(`${file.replace(/\.br$/, '')}.123.tmp`, 'half');
  const strange = join(file, '..', 'README');
  await writeFile(strange, 'not ours');
  await removeArchive(storage.provider, backup.archiveName);
  expect(await chunkFiles(storage.path)).toEqual([strange]);
  await expect(stat(join(storage.path, '.pve-backup-bridge/sweep-wanted'))).rejects.toThrow();
});
