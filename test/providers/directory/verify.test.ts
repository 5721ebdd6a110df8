import { lstat, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { encodeRecord, parseRecord } from '../../../src/providers/directory/archive-record.ts';
import { backUpContainer, makeRoot, restoreTree } from './containers.ts';
import { ProgramTree } from './program-tree.ts';
import {
  backUp,
  chunk,
  chunkFiles,
  extent,
  MemoryVolume,
  makeStorage,
  type Opened,
  openStorage,
  patterned,
  restore,
} from './setup.ts';
import { damages, flipBit, repair, states, verifyAll, verifyOne } from './verify-support.ts';

const tail = 64 * 1024;
const diskOf = (first: number, second: number) =>
  Buffer.concat([patterned(chunk, first), patterned(tail, second)]);
const volumeOf = (disk: Buffer, dirty?: ConstructorParameters<typeof MemoryVolume>[2]) =>
  new MemoryVolume('drive-scsi0', disk, dirty);

async function largestChunk(path: string): Promise<string> {
  const files = await chunkFiles(path);
  const sizes = await Promise.all(files.map(async (file) => (await lstat(file)).size));
  return files[sizes.indexOf(Math.max(...sizes))] ?? '';
}

/** Two VMs that share their first chunk, one that shares nothing, and a container. */
async function makeArchives(storage: Opened) {
  const firewallConfig = Buffer.from('[OPTIONS]\n');
  const vm = async (vmid: number, disk: Buffer) =>
    (await backUp(storage, [volumeOf(disk)], { vmid, firewallConfig })).backup.archiveName;
  const first = await vm(100, diskOf(1, 2));
  const shared = await largestChunk(storage.path);
  const second = await vm(101, diskOf(1, 3));
  const alone = await vm(102, diskOf(4, 5));
  const root = new ProgramTree(await makeRoot());
  const container = (await backUpContainer(storage, root)).backup.archiveName;
  return { first, second, alone, container, shared };
}

type Archives = Awaited<ReturnType<typeof makeArchives>>;

const files: Record<string, (archives: Archives) => { file: string; touched: string[] }> = {
  'a chunk of two archives': ({ shared, first, second }) => ({
    file: shared,
    touched: [first, second],
  }),
  'an index': ({ first }) => ({ file: `${first}/drive-scsi0.index`, touched: [first] }),
  'a guest config': ({ first }) => ({ file: `${first}/guest.conf`, touched: [first] }),
  'a firewall config': ({ first }) => ({ file: `${first}/firewall.conf`, touched: [first] }),
  'the record of a VM': ({ first }) => ({ file: `${first}/archive.json`, touched: [first] }),
  'the record of a container': ({ container }) => ({
    file: `${container}/archive.json`,
    touched: [container],
  }),
  'a tar': ({ container }) => ({ file: `${container}/archive.tar.zst`, touched: [container] }),
};

describe.each(['brotli', 'none'])('compression %s', (compression) => {
  test.each(Object.entries(files))('every damage to %s is found and named', async (_, choose) => {
    const storage = await makeStorage({ 'bridge-dir-compression': compression });
    const { provider, path } = storage;
    const archives = await makeArchives(storage);
    const { file, touched } = choose(archives);
    const tar = compression === 'none' ? file.replace('.tar.zst', '.tar') : file;
    const target = tar.startsWith('/') ? tar : join(path, tar);
    expect(await verifyAll(provider)).toEqual({});
    const content = await readFile(target);
    // By the name of the file or, as the volume says it, of the device or the chunk.
    const [stem = ''] = basename(target).split('.br');
    const named = target.endsWith('.index') ? /drive-scsi0/ : new RegExp(stem);
    for (const [damage, apply] of Object.entries(damages)) {
      await apply(target);
      const found = await verifyAll(provider);
      expect(Object.keys(found).sort(), damage).toEqual([...touched].sort());
      for (const name of touched) expect(found[name]?.join('\n'), damage).toMatch(named);
      const listed = await states(provider);
      for (const [name, state] of Object.entries(listed)) {
        expect([damage, name, state]).toEqual([damage, name, name in found ? 'failed' : 'ok']);
      }
      expect(Object.keys(listed)).toHaveLength(4);
      await repair(target, content);
    }
    expect(await verifyAll(provider)).toEqual({});
    expect(new Set(Object.values(await states(provider)))).toEqual(new Set(['ok']));
  });
});

test('any flipped bit of archive.json is found', () => {
  const record = {
    format: 1,
    archiveId: 'c9d3cf0b-5e0b-4f5c-8a3e-0d7a9d6a3b11',
    vmid: 100,
    vmtype: 'qemu',
    startTime: '2026-11-23T10:00:00.000Z',
    tool: 'pve-backup-bridge 1.0.0',
    chunkSize: chunk,
    volumes: { 'drive-scsi0': { size: chunk, index: 'a1'.repeat(32) } },
    files: { 'guest.conf': 'b2'.repeat(32) },
    storedBytes: 12345,
  } as const;
  const bytes = Buffer.from(encodeRecord(record));
  expect(parseRecord(bytes, 'archive.json')).toEqual(record);
  for (let at = 0; at < bytes.length * 8; at++) {
    const damaged = Buffer.from(bytes);
    damaged.writeUInt8(damaged.readUInt8(at >> 3) ^ (1 << (at & 7)), at >> 3);
    expect(() => parseRecord(damaged, 'archive.json'), `bit ${at}`).toThrow(/is damaged/);
  }
});

test('the next backup heals a damaged chunk, and every archive that named it', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const disk = diskOf(1, 2);
  const first = await backUp(storage, [volumeOf(disk)]);
  const dirty = [extent(chunk, tail)];
  const second = await backUp(storage, [volumeOf(disk, dirty)], { ledger: first.ledger });
  const names = [first.backup.archiveName, second.backup.archiveName];
  const files = await chunkFiles(path);
  for (const file of files) await flipBit(file);
  // Verifying one tells of all.
  expect(await verifyOne(provider, names[0] ?? '')).toHaveLength(2);
  expect(Object.values(await states(provider))).toEqual(['failed', 'failed']);
  expect(await chunkFiles(path)).toEqual([]);
  const aside = await readdir(join(path, '.pve-backup-bridge/damaged'));
  expect(aside.sort()).toEqual(files.map((file) => basename(file)).sort());
  const again = await verifyOne(provider, names[1] ?? '');
  expect(again.join()).toMatch(/was damaged and set aside/);

  const healing = await backUp(storage, [volumeOf(disk)], { ledger: second.ledger });
  expect(healing.plan.get('drive-scsi0')).toBe('new');
  expect(await chunkFiles(path)).toEqual(files);
  expect(await verifyAll(provider)).toEqual({});
  expect(Object.values(await states(provider))).toEqual(['ok', 'ok', 'ok']);
  for (const name of [...names, healing.backup.archiveName]) {
    expect((await restore(provider, name, 'drive-scsi0')).equals(disk)).toBe(true);
    expect(await readdir(join(path, name))).not.toContain('damaged');
  }
  const next = await backUp(storage, [volumeOf(disk, [])], { ledger: healing.ledger });
  expect(next.plan.get('drive-scsi0')).toBe('use');
});

test('a backup that ran while a chunk was set aside is no base either', async () => {
  const storage = await makeStorage();
  const other = await openStorage(storage.path);
  const disk = diskOf(1, 2);
  const first = await backUp(storage, [volumeOf(disk)]);
  await flipBit(await largestChunk(storage.path));
  const volume = volumeOf(disk, [extent(0, chunk), extent(chunk, tail)]);
  const read = volume.read.bind(volume);
  volume.read = async (offset, length) => {
    // The other chunk has been found in the store by now.
    if (offset === chunk) await verifyOne(other.provider, first.backup.archiveName);
    return read(offset, length);
  };
  volume.dirty = [extent(chunk, tail)];
  const second = await backUp(storage, [volume], { ledger: first.ledger });
  expect(second.plan.get('drive-scsi0')).toBe('use');
  const third = await backUp(storage, [volumeOf(disk)], { ledger: second.ledger });
  expect(third.plan.get('drive-scsi0')).toBe('new');
  expect(await verifyAll(storage.provider)).toEqual({});
});

test('a chunk in both forms: the damaged one goes, the archive is whole', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const disk = patterned(tail, 7);
  const { backup } = await backUp(storage, [volumeOf(disk)]);
  const [file = ''] = await chunkFiles(path);
  expect(file).toMatch(/\.br$/);
  await writeFile(file.replace('.br', ''), disk);
  await flipBit(file);
  expect(await verifyOne(provider, backup.archiveName)).toEqual([]);
  expect(await chunkFiles(path)).toEqual([file.replace('.br', '')]);
  expect((await restore(provider, backup.archiveName, 'drive-scsi0')).equals(disk)).toBe(true);
});

test('a config that the backup did not write is found', async () => {
  const storage = await makeStorage();
  const { backup } = await backUp(storage, [volumeOf(patterned(tail, 1))]);
  await writeFile(join(storage.path, backup.archiveName, 'firewall.conf'), '[OPTIONS]\n');
  const problems = await verifyOne(storage.provider, backup.archiveName);
  expect(problems).toEqual(['firewall.conf is not part of the archive']);
});

test('an archive that is removed meanwhile is no fault', async () => {
  const storage = await makeStorage();
  const { provider } = storage;
  const vm = (await backUp(storage, [volumeOf(patterned(tail, 1))])).backup.archiveName;
  const root = new ProgramTree(await makeRoot());
  const container = (await backUpContainer(storage, root)).backup.archiveName;
  for (const name of [vm, container]) {
    const archive = await provider.archive(name);
    await (await provider.archive(name)).remove();
    const upid = 'UPID:pve:00000001:00000001:00000001:verify:store:root@pam:';
    const { signal } = new AbortController();
    expect(await archive.verify?.({ log: storage.log, signal, upid })).toEqual([]);
    await expect(lstat(join(storage.path, name))).rejects.toThrow('ENOENT');
  }
});

test('verify holds a sweep off, and a cancelled one nothing', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const { backup } = await backUp(storage, [volumeOf(diskOf(1, 2))]);
  const { archiveName } = (await backUp(storage, [volumeOf(diskOf(3, 4))])).backup;
  await (await provider.archive(backup.archiveName)).remove();
  const archive = await provider.archive(archiveName);
  const abort = new AbortController();
  let swept: Promise<void> | undefined;
  // A signal that is asked again and again tells when the work is under way.
  const signal = new Proxy(abort.signal, {
    get(target, key) {
      if (key === 'throwIfAborted') swept ??= provider.reclaim?.();
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  const upid = 'UPID:pve:00000001:00000001:00000001:verify:store:root@pam:';
  expect(await archive.verify?.({ log: storage.log, signal, upid })).toEqual([]);
  await swept;
  expect(await chunkFiles(path)).toHaveLength(4);
  abort.abort();
  await expect(
    archive.verify?.({ log: storage.log, signal: abort.signal, upid }),
  ).rejects.toThrow();
  expect(await states(provider)).toEqual({ [archiveName]: 'ok' });
  await provider.reclaim?.();
  expect(await chunkFiles(path)).toHaveLength(2);
});

test('the container of a verified archive still comes back', async () => {
  const storage = await makeStorage();
  const root = new ProgramTree(await makeRoot());
  const { archiveName } = (await backUpContainer(storage, root)).backup;
  expect(await verifyOne(storage.provider, archiveName)).toEqual([]);
  await rm(join(storage.path, archiveName, 'verification.json'));
  expect(await states(storage.provider)).toEqual({ [archiveName]: undefined });
  expect(await restoreTree(storage.provider, archiveName)).toContain('hostname');
});
