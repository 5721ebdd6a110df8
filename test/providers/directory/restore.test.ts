import { execFile } from 'node:child_process';
import { readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import { brotliCompressSync, constants } from 'node:zlib';
import { expect, test } from 'vitest';
import {
  backUp,
  chunk,
  chunkFiles,
  extent,
  MemoryVolume,
  MiB,
  makeStorage,
  openStorage,
  patterned,
  restore,
} from './setup.ts';

const disk = Buffer.concat([
  patterned(2 * chunk, 1),
  Buffer.alloc(2 * chunk),
  patterned(chunk + 512, 2),
]);

async function backedUp(compression = 'brotli') {
  const storage = await makeStorage({ 'bridge-dir-compression': compression });
  const { backup } = await backUp(storage, [new MemoryVolume('drive-scsi0', disk)]);
  const archive = await storage.provider.archive(backup.archiveName);
  return { ...storage, name: backup.archiveName, archive };
}

test('small reads in any order and several at once give the disk', async () => {
  const { archive } = await backedUp();
  const opened = await archive.restoreVm?.();
  const image = await opened?.openVolume('drive-scsi0');
  expect(opened?.volumes).toEqual(new Map([['drive-scsi0', disk.length]]));
  const step = 128 * 1024;
  const offsets = Array.from({ length: Math.ceil(disk.length / step) }, (_, i) => i * step);
  offsets.push(...offsets.map((offset) => (offset * 7919) % (disk.length - step)));
  await Promise.all(
    offsets.map(async (offset) => {
      const length = Math.min(step, disk.length - offset);
      const bytes = await image?.read(offset, length);
      expect(disk.compare(bytes ?? Buffer.alloc(0), 0, length, offset, offset + length)).toBe(0);
    }),
  );
  await expect(image?.read(disk.length - 1, 2)).rejects.toThrow(RangeError);
  await image?.close();
  await opened?.close();
});

test('extents tell the chunks of zeroes', async () => {
  const { archive } = await backedUp();
  const opened = await archive.restoreVm?.();
  const image = await opened?.openVolume('drive-scsi0');
  expect(await image?.extents?.(0, disk.length)).toEqual([
    extent(0, 2 * chunk),
    extent(2 * chunk, 2 * chunk, true),
    extent(4 * chunk, chunk + 512),
  ]);
  expect(await image?.extents?.(MiB, 2 * chunk)).toEqual([
    extent(MiB, 2 * chunk - MiB),
    extent(2 * chunk, MiB, true),
  ]);
  await opened?.close();
});

test.each(['brotli', 'none'])(
  'C4: a missing, empty or cut chunk is found before PVE destroys the old disks (%s)',
  async (compression) => {
    const { archive, path, name } = await backedUp(compression);
    const [file = '', other = ''] = await chunkFiles(path);
    const harm = [() => rm(file), () => writeFile(other, '')];
    if (compression === 'none') harm.push(() => truncate(file, chunk - 1));
    for (const each of harm) {
      const [before, after] = await Promise.all([readFile(file), readFile(other)]);
      await each();
      await expect(archive.restoreVm?.()).rejects.toThrow(
        new RegExp(`${name} cannot be restored: drive-scsi0: chunk [0-9a-f]{64} is missing`),
      );
      await Promise.all([writeFile(file, before), writeFile(other, after)]);
    }
    await (await archive.restoreVm?.())?.close();
  },
);

test('a damaged chunk is an error that names chunk and archive, never wrong data', async () => {
  const { provider, path, name } = await backedUp();
  for (const file of await chunkFiles(path)) {
    const before = await readFile(file);
    const hex = basename(file, '.br');
    const wrong = before.length > 100_000 ? chunk : 512;
    for (const content of [brotliCompressSync(Buffer.alloc(wrong, 1)), Buffer.alloc(100, 7)]) {
      await writeFile(file, content);
      // Not the buffer itself: it would take minutes to print.
      await expect(restore(provider, name, 'drive-scsi0').then(() => 'restored')).rejects.toThrow(
        new RegExp(`archive ${name}, drive-scsi0: chunk ${hex} (is damaged|cannot be read)`),
      );
    }
    await writeFile(file, before);
  }
  expect((await restore(provider, name, 'drive-scsi0')).equals(disk)).toBe(true);
});

test('a chunk that unpacks to far more than a chunk does not fill the memory', async () => {
  const { provider, path, name } = await backedUp();
  const [file = ''] = await chunkFiles(path);
  const params = { [constants.BROTLI_PARAM_QUALITY]: 1 };
  await writeFile(file, brotliCompressSync(Buffer.alloc(256 * MiB), { params }));
  const before = process.memoryUsage().rss;
  await expect(restore(provider, name, 'drive-scsi0').then(() => 'restored')).rejects.toThrow(
    /cannot be read/,
  );
  expect(process.memoryUsage().rss - before).toBeLessThan(128 * MiB);
});

test('a damaged index, or a device that is not there, is an error', async () => {
  const { archive, path, name } = await backedUp();
  const opened = await archive.restoreVm?.();
  await expect(opened?.openVolume('drive-scsi9')).rejects.toThrow(/no device drive-scsi9/);
  await opened?.close();
  const file = join(path, name, 'drive-scsi0.index');
  const index = await readFile(file);
  index[3] = (index[3] ?? 0) ^ 1;
  await writeFile(file, index);
  await expect(archive.restoreVm?.()).rejects.toThrow(/the index of drive-scsi0 is damaged/);
});

test('the recovery line of the README rebuilds a disk without any of our code', async () => {
  const storage = await makeStorage();
  const none = await openStorage(storage.path, { 'bridge-dir-compression': 'none' });
  const efi = patterned(528 * 1024, 4);
  const tail = Buffer.concat([patterned(chunk, 6), Buffer.alloc(MiB)]);
  const volumes = [
    new MemoryVolume('drive-scsi0', disk),
    new MemoryVolume('drive-efidisk0', efi),
    new MemoryVolume('drive-scsi1', tail),
  ];
  await backUp(none, volumes.slice(1, 2));
  const { backup } = await backUp(storage, volumes);
  const script = new URL('../../../fixtures/providers/directory-recovery.sh', import.meta.url);
  for (const { device, data } of volumes) {
    const args = [script.pathname, storage.path, backup.archiveName, device];
    const options = { encoding: 'buffer', maxBuffer: 64 * MiB } as const;
    const { stdout } = await promisify(execFile)('sh', args, options);
    expect(stdout.equals(data)).toBe(true);
  }
});
