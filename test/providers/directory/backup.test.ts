import { readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  backUp,
  chunk,
  chunkFiles,
  extent,
  ledgerOf,
  listNames,
  MemoryVolume,
  MiB,
  makeStorage,
  openStorage,
  patterned,
  removeArchive,
  restore,
} from './setup.ts';

/** 5 chunks: data, zeroes, data equal to the first, incompressible, a short tail. */
function mixedDisk(): Buffer {
  const first = patterned(chunk, 1);
  const noise = patterned(chunk, 2);
  for (let at = 0; at < chunk; at += 4) noise.writeUInt32LE((at * 2654435761) >>> 0, at);
  return Buffer.concat([first, Buffer.alloc(chunk), first, noise, patterned(512 * 1024 + 512, 3)]);
}

describe.each(['brotli', 'none'])('compression %s', (compression) => {
  test('a full backup is restored bit for bit', async () => {
    const storage = await makeStorage({ 'bridge-dir-compression': compression });
    const disk = mixedDisk();
    const efi = patterned(528 * 1024, 9);
    const { backup, plan, archiveSize } = await backUp(storage, [
      new MemoryVolume('drive-scsi0', disk),
      new MemoryVolume('drive-efidisk0', efi),
    ]);
    expect(Object.fromEntries(plan)).toEqual({ 'drive-scsi0': 'new', 'drive-efidisk0': 'new' });
    const name = backup.archiveName;
    expect((await restore(storage.provider, name, 'drive-scsi0')).equals(disk)).toBe(true);
    expect((await restore(storage.provider, name, 'drive-efidisk0')).equals(efi)).toBe(true);
    // Equal chunks once, zeroes not at all.
    const files = await chunkFiles(storage.path);
    expect(files).toHaveLength(4);
    expect(files.some((file) => file.endsWith('.br'))).toBe(compression === 'brotli');
    const [info] = await storage.provider.listArchives({ vmid: 100 });
    expect(info?.size).toBe(archiveSize);
    expect(archiveSize).toBeGreaterThan(0);
  });
});

test('B15: an incremental backup reads the dirty extents and nothing else', async () => {
  const storage = await makeStorage();
  const before = mixedDisk();
  const full = await backUp(storage, [new MemoryVolume('drive-scsi0', before)]);
  const after = Buffer.from(before);
  patterned(chunk, 77).copy(after, chunk);
  const dirty = [extent(chunk, chunk)];
  const volume = new MemoryVolume('drive-scsi0', after, dirty);
  const incremental = await backUp(storage, [volume], { ledger: full.ledger });
  expect(incremental.plan.get('drive-scsi0')).toBe('use');
  expect(volume.bytesRead).toBe(chunk);
  expect(volume.discarded).toEqual([{ offset: chunk, length: chunk }]);
  const { provider } = storage;
  const old = await restore(provider, full.backup.archiveName, 'drive-scsi0');
  expect(old.equals(before)).toBe(true);
  const now = await restore(provider, incremental.backup.archiveName, 'drive-scsi0');
  expect(now.equals(after)).toBe(true);
});

test('E8: dirty extents that cover parts of a chunk are laid over the chunk before', async () => {
  const storage = await makeStorage();
  const before = mixedDisk();
  const full = await backUp(storage, [new MemoryVolume('drive-scsi0', before)]);
  const after = Buffer.from(before);
  const dirty = [
    extent(64 * 1024, 64 * 1024),
    extent(MiB, 128 * 1024, true),
    extent(chunk + 2 * MiB, 64 * 1024),
    extent(2 * chunk - 65536, 128 * 1024),
    extent(4 * chunk + 65536, 64 * 1024),
  ];
  for (const { offset, length, zero } of dirty) {
    after.fill(0, offset, offset + length);
    if (!zero) patterned(length, offset + 5).copy(after, offset);
  }
  const volume = new MemoryVolume('drive-scsi0', after, dirty);
  const { backup } = await backUp(storage, [volume], { ledger: full.ledger });
  const now = await restore(storage.provider, backup.archiveName, 'drive-scsi0');
  expect(now.equals(after)).toBe(true);
});

test('B15: a bitmap without its archive is an error, not a guess', async () => {
  const storage = await makeStorage();
  const disk = patterned(3 * chunk, 4);
  const volume = new MemoryVolume('drive-scsi0', disk, [
    extent(0, chunk),
    extent(2 * chunk, chunk),
  ]);
  await expect(backUp(storage, [volume])).rejects.toThrow(/leaves out the area at byte 4194304/);
  const part = new MemoryVolume('drive-scsi0', disk, [extent(0, 3 * chunk - 512)]);
  await expect(backUp(storage, [part])).rejects.toThrow(/leaves out the area at byte 8388608/);
  expect(await listNames(storage.provider)).toEqual([]);
});

test('a lost bitmap: everything is read, only new chunks are written', async () => {
  const storage = await makeStorage();
  const disk = mixedDisk();
  await backUp(storage, [new MemoryVolume('drive-scsi0', disk)]);
  const files = await chunkFiles(storage.path);
  patterned(chunk, 5).copy(disk, chunk);
  const volume = new MemoryVolume('drive-scsi0', disk);
  const { plan, backup } = await backUp(storage, [volume]);
  expect(plan.get('drive-scsi0')).toBe('new');
  expect(volume.bytesRead).toBe(disk.length);
  expect(await chunkFiles(storage.path)).toHaveLength(files.length + 1);
  expect(storage.log.lines).toContainEqual(expect.stringMatching(/reused 4 chunks/));
  const now = await restore(storage.provider, backup.archiveName, 'drive-scsi0');
  expect(now.equals(disk)).toBe(true);
});

describe('B15: the plan is `use` only for the very archive that consumed the bitmap', () => {
  const disk = patterned(2 * chunk, 6);
  const volume = () => new MemoryVolume('drive-scsi0', disk);

  test('not after the newest archive was removed', async () => {
    const storage = await makeStorage();
    const first = await backUp(storage, [volume()]);
    const second = await backUp(storage, [volume()], { ledger: first.ledger });
    await removeArchive(storage.provider, second.backup.archiveName);
    expect((await backUp(storage, [volume()], { ledger: second.ledger })).plan).toEqual(
      new Map([['drive-scsi0', 'new']]),
    );
  });

  test('not when another storage id backed the device up in between', async () => {
    const storage = await makeStorage();
    const other = await openStorage(storage.path);
    const ours = await backUp(storage, [volume()]);
    await backUp(other, [volume()]);
    expect((await backUp(storage, [volume()], { ledger: ours.ledger })).plan).toEqual(
      new Map([['drive-scsi0', 'new']]),
    );
  });

  test('but an archive in between without the device does no harm', async () => {
    const storage = await makeStorage();
    const ours = await backUp(storage, [volume()]);
    await backUp(storage, [new MemoryVolume('drive-scsi1', disk)]);
    const done = await backUp(storage, [new MemoryVolume('drive-scsi0', disk, [])], {
      ledger: ours.ledger,
    });
    expect(done.plan.get('drive-scsi0')).toBe('use');
    const now = await restore(storage.provider, done.backup.archiveName, 'drive-scsi0');
    expect(now.equals(disk)).toBe(true);
  });

  test('not at another size', async () => {
    const storage = await makeStorage();
    const { backup, ledger } = await backUp(storage, [volume()]);
    const size = disk.length + 512;
    const lying = ledgerOf({ 'drive-scsi0': { archiveId: backup.archiveId, size } });
    for (const each of [ledger, lying]) {
      const grown = new MemoryVolume('drive-scsi0', Buffer.concat([disk, Buffer.alloc(512)]));
      expect((await backUp(storage, [grown], { ledger: each })).plan.get('drive-scsi0')).toBe(
        'new',
      );
    }
  });

  test.each(['archive.json', 'drive-scsi0.index'])('not when its %s is damaged', async (file) => {
    const storage = await makeStorage();
    const { backup, ledger } = await backUp(storage, [volume()]);
    await truncate(join(storage.path, backup.archiveName, file), 20);
    expect((await backUp(storage, [volume()], { ledger })).plan.get('drive-scsi0')).toBe('new');
  });

  test('not when the archive is known to be damaged', async () => {
    const storage = await makeStorage();
    const { backup, ledger } = await backUp(storage, [volume()]);
    await writeFile(join(storage.path, backup.archiveName, 'damaged'), 'x\n');
    expect((await backUp(storage, [volume()], { ledger })).plan.get('drive-scsi0')).toBe('new');
  });
});

test('B16: configs come back byte for byte, a missing firewall config stays missing [C8]', async () => {
  const storage = await makeStorage();
  const guestConfig = Buffer.from([0x6e, 0xff, 0xfe, 0x0a, 0x0d, 0x00, 0xc3, 0x28, 0x23]);
  const firewallConfig = Buffer.from('[OPTIONS]\r\n\xff', 'latin1');
  const disks = () => [new MemoryVolume('drive-scsi0', patterned(512, 1))];
  const one = await backUp(storage, disks(), { guestConfig, firewallConfig });
  const two = await backUp(storage, disks(), { guestConfig });
  const first = await storage.provider.archive(one.backup.archiveName);
  const second = await storage.provider.archive(two.backup.archiveName);
  expect(Buffer.from(await first.guestConfig()).equals(guestConfig)).toBe(true);
  expect(Buffer.from((await first.firewallConfig()) ?? []).equals(firewallConfig)).toBe(true);
  expect(await second.firewallConfig()).toBeUndefined();
});

test('B12: `finish` after the commit never undoes it, before it leaves nothing', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const { backup } = await backUp(storage, [new MemoryVolume('drive-scsi0', patterned(chunk, 1))]);
  await backup.finish({ success: false, error: 'a hook script failed' });
  await backup.finish({ success: false });
  expect(await listNames(provider)).toEqual([backup.archiveName]);
  const startTime = new Date('2026-11-24T00:00:00Z');
  const unused = await provider.backupVm?.({ vmid: 101, vmtype: 'qemu', startTime });
  expect(await listNames(provider)).toEqual([backup.archiveName]);
  await unused?.finish({ success: false });
  await unused?.finish({ success: false });
  await expect(stat(join(path, '101/qemu-2026-11-24T00:00:00Z.partial'))).rejects.toThrow('ENOENT');
});

test('two backups of a guest in one second: the second is refused', async () => {
  const storage = await makeStorage();
  const startTime = new Date('2026-11-23T10:06:42Z');
  const guest = { vmid: 100, vmtype: 'qemu', startTime } as const;
  const first = await storage.provider.backupVm?.(guest);
  expect(first?.archiveName).toBe('100/qemu-2026-11-23T10:06:42Z');
  await expect(storage.provider.backupVm?.(guest)).rejects.toThrow(/two backups of a guest/);
  await first?.finish({ success: false });
  const disks = [new MemoryVolume('drive-scsi0', patterned(512, 1))];
  await backUp(storage, disks, { startTime });
  await expect(storage.provider.backupVm?.(guest)).rejects.toThrow(/two backups of a guest/);
  expect(await listNames(storage.provider)).toHaveLength(1);
});

test('B13: the log file goes into the archive; without an archive, or its file, the job goes on', async () => {
  const storage = await makeStorage();
  const { backup } = await backUp(storage, [new MemoryVolume('drive-scsi0', patterned(512, 1))]);
  const log = join(storage.path, 'task.log');
  await writeFile(log, 'INFO: all is well\n');
  await backup.handleLogFile?.(log);
  const kept = join(storage.path, backup.archiveName, 'backup.log');
  expect(await readFile(kept, 'utf8')).toBe('INFO: all is well\n');
  const startTime = new Date('2026-11-24T00:00:00Z');
  const unused = await storage.provider.backupVm?.({ vmid: 7, vmtype: 'qemu', startTime });
  await unused?.finish({ success: false });
  await unused?.handleLogFile?.(join(storage.path, 'missing.log'));
});

test('a cancelled backup leaves nothing in the list and the next one is right', async () => {
  const storage = await makeStorage();
  const disk = patterned(8 * chunk, 8);
  const abort = new AbortController();
  const volume = new MemoryVolume('drive-scsi0', disk);
  const read = volume.read.bind(volume);
  volume.read = (offset, length) => {
    if (offset >= 4 * chunk) abort.abort();
    return read(offset, length);
  };
  await expect(backUp(storage, [volume], { signal: abort.signal })).rejects.toThrow();
  expect(await listNames(storage.provider)).toEqual([]);
  await storage.provider.endJob?.();
  await storage.provider.startJob?.({ startTime: new Date() });
  expect(await chunkFiles(storage.path)).toEqual([]);
  const { backup } = await backUp(storage, [new MemoryVolume('drive-scsi0', disk)]);
  const now = await restore(storage.provider, backup.archiveName, 'drive-scsi0');
  expect(now.equals(disk)).toBe(true);
});

test('two backups at once share their chunks safely', async () => {
  const storage = await makeStorage();
  const other = await openStorage(storage.path);
  const disk = mixedDisk();
  const jobs = [storage, other, storage].map((each, position) => {
    return backUp(each, [new MemoryVolume('drive-scsi0', disk)], { vmid: 200 + position });
  });
  const done = await Promise.all(jobs);
  expect(await chunkFiles(storage.path)).toHaveLength(3);
  for (const { backup } of done) {
    const now = await restore(storage.provider, backup.archiveName, 'drive-scsi0');
    expect(now.equals(disk)).toBe(true);
  }
});
