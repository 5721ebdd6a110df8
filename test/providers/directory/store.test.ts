import { mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  backUp,
  filesIn,
  listNames,
  MemoryVolume,
  makeStorage,
  makeTemporary,
  openStorage,
  patterned,
} from './setup.ts';

const disks = () => [new MemoryVolume('drive-scsi0', patterned(512, 1))];

test('opening, status and lists write nothing; the first job makes the store', async () => {
  const { provider, path } = await makeStorage();
  expect(await provider.listArchives({})).toEqual([]);
  const { total, used, available } = await provider.status();
  expect(total).toBeGreaterThanOrEqual(used + available);
  expect(await filesIn(path)).toEqual([]);
  await provider.startJob?.({ startTime: new Date() });
  const store = JSON.parse(await readFile(join(path, '.pve-backup-bridge/store.json'), 'utf8'));
  expect(store).toMatchObject({ format: 1, cluster: 'cluster one' });
});

test('a path that does not exist, or is a file, is named in the error', async () => {
  const directory = await makeTemporary();
  const missing = await openStorage(join(directory, 'nowhere'));
  const error = /nowhere does not exist: is its file system mounted/;
  await expect(missing.provider.status()).rejects.toThrow(error);
  await expect(missing.provider.listArchives({})).rejects.toThrow(error);
  await expect(missing.provider.startJob?.({ startTime: new Date() })).rejects.toThrow(error);
  await expect(backUp(missing, disks())).rejects.toThrow(error);
  await writeFile(join(directory, 'nowhere'), '');
  await expect(missing.provider.status()).rejects.toThrow(/nowhere is not a directory/);
});

describe('a store of another cluster', () => {
  test('is refused in every way', async () => {
    const { path, ...first } = await makeStorage();
    const { backup } = await backUp({ path, ...first }, disks());
    const { provider, ...stranger } = await openStorage(path, {}, 'cluster two');
    const refusal = /belongs to cluster one, this is cluster two/;
    await expect(provider.status()).rejects.toThrow(refusal);
    await expect(provider.listArchives({})).rejects.toThrow(refusal);
    await expect(provider.archive(backup.archiveName)).rejects.toThrow(refusal);
    await expect(provider.startJob?.({ startTime: new Date() })).rejects.toThrow(refusal);
    await expect(backUp({ provider, ...stranger }, disks())).rejects.toThrow(refusal);
  });

  test.each(['one', 'cluster one'])('is shared if the option names it: %s', async (name) => {
    const { path, provider } = await makeStorage();
    await provider.startJob?.({ startTime: new Date() });
    const shared = await openStorage(path, { 'bridge-dir-shared-with-cluster': name }, 'machine 7');
    await backUp(shared, disks());
    expect(await listNames(shared.provider)).toHaveLength(1);
  });

  test('another name in the option does not help', async () => {
    const { path, provider } = await makeStorage();
    await provider.startJob?.({ startTime: new Date() });
    const other = await openStorage(path, { 'bridge-dir-shared-with-cluster': 'on' }, 'machine 7');
    await expect(other.provider.status()).rejects.toThrow(
      /set bridge-dir-shared-with-cluster to one/,
    );
  });
});

test('a newer or damaged store is refused', async () => {
  const { provider, path } = await makeStorage();
  await provider.startJob?.({ startTime: new Date() });
  const file = join(path, '.pve-backup-bridge/store.json');
  await writeFile(file, '{"format":2,"shards":true}');
  await expect(provider.status()).rejects.toThrow(/has format 2, this version knows up to 1/);
  await writeFile(file, '{"format":1}');
  await expect(provider.status()).rejects.toThrow(/store.json is damaged/);
  await writeFile(file, 'x'.repeat(100_000));
  await expect(provider.status()).rejects.toThrow(/100000 bytes/);
});

test.each([
  '../100/qemu-2026-11-23T10:06:42Z',
  '100/../100/qemu-2026-11-23T10:06:42Z',
  '100/qemu-2026-11-23T10:06:42Z/..',
  '100/qemu-2026-11-23T10:06:42Z\n',
  '100/qemu-2026-11-23T10:06:42Z\0',
  '100/qemu-2026-13-45T99:99:99Z',
  '100/qemu-2026-11-23T10:06:42Z.partial',
  '0/qemu-2026-11-23T10:06:42Z',
  '100/openvz-1700000000',
  `100/qemu-${'1'.repeat(1000)}`,
  '',
])('an archive name that is none is refused: %j', async (name) => {
  const { provider } = await makeStorage();
  await expect(provider.archive(name)).rejects.toThrow(/is no archive name/);
});

test('an archive that is not there is an error that names it', async () => {
  const { provider } = await makeStorage();
  const name = '100/qemu-2026-11-23T10:06:42Z';
  await expect(provider.archive(name)).rejects.toThrow(`there is no archive ${name}`);
});

test('what is no archive is not listed; damaged ones are, and hide no others', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const { backup } = await backUp(storage, disks());
  const { backup: bad } = await backUp(storage, disks());
  await writeFile(join(path, bad.archiveName, 'archive.json'), '{"format":9}');
  const outside = await makeTemporary();
  await writeFile(join(outside, 'guest.conf'), '');
  await mkdir(join(path, '100/qemu-2026-01-01T00:00:00Z'));
  await mkdir(join(path, '100/qemu-2026-01-01T00:00:01Z.partial'));
  await mkdir(join(path, 'images/qemu-2026-01-01T00:00:00Z'), { recursive: true });
  await symlink(outside, join(path, '100/qemu-1700000000'));
  await writeFile(join(path, '101'), '');
  const names = [backup.archiveName, bad.archiveName];
  expect(await listNames(provider)).toEqual(names);
  expect(await listNames(provider, 100)).toEqual(names);
  expect(await listNames(provider, 101)).toEqual([]);
  const archive = await provider.archive(bad.archiveName);
  await expect(archive.restoreVm?.()).rejects.toThrow(/archive.json is damaged/);
  await archive.remove();
  expect(await listNames(provider)).toEqual([backup.archiveName]);
  await rm(outside, { recursive: true });
});
