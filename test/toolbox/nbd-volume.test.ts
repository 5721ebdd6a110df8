import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterEach, describe, expect, test } from 'vitest';
import { copyVolume } from '../../src/toolbox/copy.ts';
import { type NbdVolumeOptions, openNbdVolume } from '../../src/toolbox/nbd-volume.ts';
import { collect } from './support/extents.ts';
import { bitmapName, qemuSnapshot } from './support/qemu-snapshot.ts';

const mib = 1024 * 1024;
const kib = 1024;
const closers: (() => Promise<void>)[] = [];

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function snapshot(options: Parameters<typeof qemuSnapshot>[0]) {
  const qemu = await qemuSnapshot(options);
  closers.push(qemu.close);
  return qemu;
}

async function openVolume(
  server: { device: string; size: number; socketPath: string },
  options: Pick<NbdVolumeOptions, 'bitmapMode'> & Partial<NbdVolumeOptions>,
) {
  const { device, size, socketPath } = server;
  const signal = options.signal ?? new AbortController().signal;
  const volume = await openNbdVolume({ device, size, socketPath, ...options, signal });
  closers.push(() => volume.close());
  return volume;
}

/** Any other server, under the name of a disk. */
async function serve(size: number, program: string, args: (socket: string) => string[]) {
  const directory = await mkdtemp(join(tmpdir(), 'nbd-volume-'));
  const socketPath = join(directory, 's');
  const server = execa(program, args(socketPath), { reject: false });
  closers.push(async () => {
    server.kill('SIGKILL');
    await server;
    await rm(directory, { recursive: true });
  });
  await expect
    .poll(() => stat(socketPath).then((s) => s.isSocket()), { timeout: 10_000 })
    .toBe(true);
  return { device: 'drive-scsi0', size, socketPath };
}

function sinkOf(size: number) {
  const bytes = Buffer.alloc(size, 0xee);
  return {
    bytes,
    write: async (offset: number, data: Buffer) => void data.copy(bytes, offset),
    zero: async (offset: number, length: number) => void bytes.fill(0, offset, offset + length),
  };
}

const copyOptions = () => ({
  blockSize: 4 * mib,
  concurrency: 3,
  signal: new AbortController().signal,
});

/** 18 MiB and an odd tail: holes at 4 to 8 MiB and at 9 to 10 MiB. */
function disk(): Buffer {
  const data = Buffer.concat([randomBytes(18 * mib), randomBytes(528 * kib)]);
  return data.fill(0, 4 * mib, 8 * mib).fill(0, 9 * mib, 10 * mib);
}

describe('NBD volume', () => {
  test('E1: without a bitmap everything is copied as it was at the snapshot', async () => {
    const qemu = await snapshot({ disk: disk() });
    const volume = await openVolume(qemu, { bitmapMode: 'none', bitmapName: null });
    await qemu.guestWrite(17 * mib, randomBytes(mib));
    const sink = sinkOf(qemu.size);
    const stats = await copyVolume(volume, sink, copyOptions());
    expect(sink.bytes.equals(qemu.snapshot)).toBe(true);
    expect(stats.dirty).toBe(qemu.size);
    // In the block at 8 MiB there is 1 MiB of zeroes between data: it is not read either.
    expect(stats.read).toBe(qemu.size - 5 * mib);
  });

  test('E4: in mode new the map comes from two connections, and zeroes are known in it', async () => {
    const data = disk();
    const dirty = [
      { offset: 5 * mib, data: randomBytes(4096) },
      { offset: 9 * mib, data: Buffer.alloc(512, 1) },
      { offset: 18 * mib + 1024, data: Buffer.alloc(512, 2) },
    ];
    const qemu = await snapshot({ disk: data, dirty });
    const volume = await openVolume(qemu, { bitmapMode: 'new', bitmapName });
    const extents = await collect(volume.extents());
    const dataAt = 9 * mib + 4096;
    expect(extents).toEqual([
      { offset: 4 * mib, length: mib, zero: true },
      { offset: 5 * mib, length: 4096, zero: false },
      { offset: 5 * mib + 4096, length: 3 * mib - 4096, zero: true },
      { offset: 8 * mib, length: dataAt - 8 * mib, zero: false },
      { offset: dataAt, length: 10 * mib - dataAt, zero: true },
      { offset: 10 * mib, length: 2 * mib, zero: false },
      // Clipped at the end of the disk [E2].
      { offset: 16 * mib, length: qemu.size - 16 * mib, zero: false },
    ]);
  });

  test('E2, E3, E8: in mode reuse just the dirty extents are read, and every byte of them', async () => {
    const dirty = [
      { offset: 5 * mib, data: randomBytes(4096) },
      { offset: 18 * mib + 1024, data: randomBytes(512) },
    ];
    const qemu = await snapshot({ disk: disk(), dirty });
    const volume = await openVolume(qemu, { bitmapMode: 'reuse', bitmapName });
    const extents = [
      { offset: 4 * mib, length: 4 * mib, zero: false },
      { offset: 16 * mib, length: qemu.size - 16 * mib, zero: false },
    ];
    expect(await collect(volume.extents())).toEqual(extents);
    const sink = sinkOf(qemu.size);
    const stats = await copyVolume(volume, sink, copyOptions());
    expect(stats.dirty).toBe(6 * mib + 528 * kib);
    expect(stats.read).toBe(stats.dirty);
    for (const { offset, length } of extents) {
      const part = (from: Buffer) => from.subarray(offset, offset + length);
      expect(part(sink.bytes).equals(part(qemu.snapshot))).toBe(true);
    }
    expect(sink.bytes.subarray(0, 4 * mib).every((byte) => byte === 0xee)).toBe(true);
    // Restartable, and discarding does not change it [E6].
    expect(await collect(volume.extents())).toEqual(extents);
  });

  test('E2: all clean is nothing to do; E8: all dirty is read whole, whatever the mode', async () => {
    const clean = await snapshot({ disk: disk(), dirty: [] });
    const idle = await openVolume(clean, { bitmapMode: 'reuse', bitmapName });
    expect(await collect(idle.extents())).toEqual([]);
    const data = randomBytes(9 * mib);
    const full = await snapshot({ disk: data, dirty: [{ offset: 0, data }] });
    const volume = await openVolume(full, { bitmapMode: 'reuse', bitmapName });
    expect(await collect(volume.extents())).toEqual([{ offset: 0, length: 9 * mib, zero: false }]);
  });

  test('E6: discarding frees the fleecing image, only in whole clusters', async () => {
    const qemu = await snapshot({ disk: disk() });
    const volume = await openVolume(qemu, { bitmapMode: 'none' });
    await qemu.guestWrite(0, randomBytes(2 * mib));
    expect(await qemu.fleecingBytes()).toBeGreaterThanOrEqual(2 * mib);
    // Plain QEMU 7.2 would abort on each of these.
    await volume.discard(0, 100);
    await volume.discard(1000, 2000);
    await volume.discard(qemu.size - 100, 100);
    expect(await qemu.fleecingBytes()).toBeGreaterThanOrEqual(2 * mib);
    await volume.discard(100, 900);
    await volume.discard(3000, 2 * mib - 3000);
    expect(await qemu.fleecingBytes()).toBeLessThan(64 * kib);
    expect(qemu.isAlive()).toBe(true);
    await expect(volume.read(0, 4096)).rejects.toThrow('cannot read');
    expect((await volume.read(2 * mib, 4096)).length).toBe(4096);
  });

  test('E6: the fleecing cluster may be larger', async () => {
    const qemu = await snapshot({ disk: disk() });
    const volume = await openVolume(qemu, { bitmapMode: 'none', discardAlignment: mib });
    await volume.discard(0, mib - 1);
    expect((await volume.read(0, 4096)).length).toBe(4096);
    await volume.discard(mib - 1, 1);
    await expect(volume.read(0, 4096)).rejects.toThrow('cannot read');
  });

  test('E7: a full fleecing image is named, and what to do', async () => {
    const data = randomBytes(8 * mib);
    const qemu = await snapshot({ disk: data, dirty: [{ offset: 0, data }], fleecingFull: true });
    const volume = await openVolume(qemu, { bitmapMode: 'new', bitmapName });
    await volume.read(4 * mib, 4096);
    await qemu.guestWrite(0, randomBytes(65536));
    const copy = copyVolume(volume, sinkOf(qemu.size), copyOptions());
    await expect(copy).rejects.toThrow(
      /cannot read 64.0 KiB at \d+ of drive-scsi0: .* fleecing image is full; free space/,
    );
  });

  test('a bitmap that QEMU does not have is an error', async () => {
    const qemu = await snapshot({ disk: disk(), dirty: [] });
    const opening = openVolume(qemu, { bitmapMode: 'reuse', bitmapName: 'another' });
    await expect(opening).rejects.toThrow("does not offer the dirty bitmap 'another'");
  });

  test('E8: a size that differs is an error', async () => {
    const qemu = await snapshot({ disk: disk() });
    const opening = openVolume({ ...qemu, size: qemu.size + 512 }, { bitmapMode: 'none' });
    await expect(opening).rejects.toThrow('was it resized?');
  });

  test('an export or a server that is not there is an error', async () => {
    const qemu = await snapshot({ disk: disk() });
    const other = openVolume({ ...qemu, device: 'drive-scsi9' }, { bitmapMode: 'none' });
    await expect(other).rejects.toThrow("cannot open drive-scsi9 on QEMU's NBD server");
    const nowhere = openVolume({ ...qemu, socketPath: '/nowhere' }, { bitmapMode: 'none' });
    await expect(nowhere).rejects.toThrow("cannot open drive-scsi0 on QEMU's NBD server");
  });

  test('E5: an I/O error costs one request, not the connection', async () => {
    const server = await serve(8 * mib, 'nbdkit', (socket) => [
      ...['-f', '-U', socket, '--filter=error', 'pattern', `size=${8 * mib}`],
      'error-pread-rate=50%',
    ]);
    const volume = await openVolume(server, { bitmapMode: 'none', connections: 1 });
    const reads = Array.from({ length: 60 }, (_, i) => volume.read(i * 4096, 4096));
    const results = await Promise.allSettled(reads);
    const errors = results.flatMap((each) => (each.status === 'rejected' ? [each.reason] : []));
    expect(errors.length).toBeGreaterThan(5);
    expect(errors.length).toBeLessThan(55);
    for (const { message } of errors) {
      expect(message).toMatch(/^cannot read 4\.0 KiB at \d+ of drive-scsi0: /);
    }
  });

  test('a server that fails to trim costs only fleecing space', async () => {
    const server = await serve(8 * mib, 'nbdkit', (socket) => [
      ...['-f', '-U', socket, '--filter=error', 'memory', `size=${8 * mib}`],
      'error-trim-rate=100%',
    ]);
    const volume = await openVolume(server, { bitmapMode: 'none' });
    await volume.discard(0, mib);
    await volume.discard(mib, mib);
    expect((await volume.read(0, 4096)).length).toBe(4096);
  });

  test('a server that takes one connection is used with one', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'one-'));
    closers.push(() => rm(directory, { recursive: true }));
    const image = join(directory, 'image');
    await execa('qemu-img', ['create', '-f', 'raw', image, '8M']);
    const server = await serve(8 * mib, 'qemu-nbd', (socket) => [
      ...['-r', '-t', '-k', socket, '-f', 'raw', '-x', 'drive-scsi0', '-e', '1', image],
    ]);
    const volume = await openVolume(server, { bitmapMode: 'none' });
    expect((await collect(volume.extents())).at(-1)?.zero).toBe(true);
    expect((await volume.read(0, 4096)).equals(Buffer.alloc(4096))).toBe(true);
    // It does not trim either.
    await volume.discard(0, mib);
  });

  test('E10: cancelled in the middle of a read, it lets go at once', async () => {
    const server = await serve(8 * mib, 'nbdkit', (socket) => [
      ...['-f', '-U', socket, '--filter=delay', 'pattern', `size=${8 * mib}`, 'rdelay=30'],
    ]);
    const controller = new AbortController();
    const { signal } = controller;
    const volume = await openVolume(server, { bitmapMode: 'none', signal });
    const start = Date.now();
    setTimeout(() => controller.abort(), 50);
    await expect(volume.read(0, 4096)).rejects.toThrow(/^cancelled$/);
    await volume.close();
    expect(Date.now() - start).toBeLessThan(3000);
    await expect(openVolume(server, { bitmapMode: 'none', signal })).rejects.toThrow('cancelled');
  });

  test('a server that dies is an error of all that is under way', async () => {
    const qemu = await snapshot({ disk: disk() });
    const volume = await openVolume(qemu, { bitmapMode: 'none' });
    await qemu.close();
    closers.length = 0;
    await expect(volume.read(0, 4096)).rejects.toThrow('cannot read 4.0 KiB at 0 of drive-scsi0');
    await expect(collect(volume.extents())).rejects.toThrow(
      'cannot ask for the base:allocation map',
    );
    await expect(volume.discard(0, mib)).rejects.toThrow('cannot discard at 0');
    await volume.close();
  });

  test('the map is a stream: nothing is asked for ahead of its reader', async () => {
    const size = 64 * 1024 ** 3;
    const server = await serve(size, 'nbdkit', (socket) => [
      ...['-f', '-U', socket, 'sparse-random', `size=${size}`, 'percent=10', 'runlength=1048576'],
    ]);
    const volume = await openVolume(server, { bitmapMode: 'none' });
    let count = 0;
    let end = 0;
    const start = Date.now();
    for await (const { offset, length } of volume.extents()) {
      expect(offset).toBe(end);
      end = offset + length;
      if (++count === 2000) break;
    }
    expect(count).toBe(2000);
    expect(end).toBeLessThan(size / 2);
    expect(Date.now() - start).toBeLessThan(5000);
  });
});
