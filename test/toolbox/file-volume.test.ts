import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { execa } from 'execa';
import { afterEach, expect, test } from 'vitest';
import { copyVolume } from '../../src/toolbox/copy.ts';
import { type FileVolumeOptions, openFileVolume } from '../../src/toolbox/file-volume.ts';
import { processStartTimeSync } from '../../src/toolbox/processes.ts';
import { collect } from './support/extents.ts';
import { startNbdfuse } from './support/nbdfuse.ts';
import { qemuSnapshot } from './support/qemu-snapshot.ts';

const kib = 1024;
const mib = 1024 * kib;
const closers: (() => Promise<void>)[] = [];

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const ownerOf = (pid: number) => ({ pid, startTime: processStartTimeSync(pid) ?? 0 });

/** What the shim would answer, a region after the other. */
function regionsOf(...regions: [number, number][]) {
  return async (max: number) => regions.splice(0, max);
}

async function openSnapshot(
  snapshot: Parameters<typeof qemuSnapshot>[0],
  options: Partial<FileVolumeOptions> = {},
) {
  const qemu = await qemuSnapshot(snapshot);
  closers.push(qemu.close);
  const fuse = await startNbdfuse(qemu);
  closers.push(fuse.close);
  const volume = await openFileVolume({
    device: qemu.device,
    size: qemu.size,
    path: `/proc/${process.pid}/fd/${fuse.fd}`,
    bitmapMode: 'reuse',
    nextRegions: regionsOf([0, qemu.size]),
    deallocate: fuse.deallocate,
    owner: ownerOf(process.pid),
    signal: new AbortController().signal,
    ...options,
  });
  closers.push(() => volume.close());
  return { qemu, fuse, volume };
}

const copyOptions = () => ({
  blockSize: 4 * mib,
  concurrency: 6,
  signal: new AbortController().signal,
});

function sinkOf(size: number) {
  const bytes = Buffer.alloc(size, 0xee);
  return {
    bytes,
    write: async (offset: number, data: Buffer) => void data.copy(bytes, offset),
    zero: async (offset: number, length: number) => void bytes.fill(0, offset, offset + length),
  };
}

/** 9 MiB and a tail that is no multiple of 4 KiB; zeroes from 4 to 8 MiB. */
const disk = () => randomBytes(9 * mib + 3 * 512).fill(0, 4 * mib, 8 * mib);

test('B7: all of a disk without a bitmap, to its last byte, as it was at the snapshot', async () => {
  const { qemu, volume } = await openSnapshot({ disk: disk() });
  await qemu.guestWrite(8 * mib, randomBytes(mib));
  const sink = sinkOf(qemu.size);
  const stats = await copyVolume(volume, sink, copyOptions());
  expect(sink.bytes.equals(qemu.snapshot)).toBe(true);
  expect(stats).toMatchObject({ dirty: qemu.size, zero: 4 * mib });
});

test('E3: just the dirty regions are read, again and again; the rest is an error', async () => {
  const data = disk();
  const dirty = [{ offset: 8 * mib, data: randomBytes(4 * kib) }];
  const size = data.length;
  const nextRegions = regionsOf([8 * mib, size - 8 * mib]);
  const { qemu, volume } = await openSnapshot({ disk: data, dirty }, { nextRegions });
  const extents = [{ offset: 8 * mib, length: size - 8 * mib, zero: false }];
  expect(await collect(volume.extents())).toEqual(extents);
  const sink = sinkOf(size);
  const stats = await copyVolume(volume, sink, copyOptions());
  expect(stats.read).toBe(size - 8 * mib);
  expect(sink.bytes.subarray(8 * mib).equals(qemu.snapshot.subarray(8 * mib))).toBe(true);
  expect(await collect(volume.extents())).toEqual(extents);
  await expect(volume.read(4 * mib, 4 * kib)).rejects.toThrow(
    /^cannot read 4.0 KiB at 4194304 of drive-scsi0: .* fleecing image is full/,
  );
});

test.each([
  [1, 1],
  [511, 2],
  [4095, 4098],
  [mib - 1, 2 * mib + 5],
  [9 * mib + 511, 1025],
])('reads of any alignment: %i+%i', async (offset, length) => {
  const { qemu, volume } = await openSnapshot({ disk: disk() });
  const into = Buffer.alloc(length);
  const data = await volume.read(offset, length, undefined, into);
  expect(data).toBe(into);
  expect(data.equals(qemu.snapshot.subarray(offset, offset + length))).toBe(true);
});

test('E6: discarding frees the fleecing image, in whole clusters', async () => {
  const { qemu, volume } = await openSnapshot({ disk: disk() });
  await qemu.guestWrite(0, randomBytes(2 * mib));
  expect(await qemu.fleecingBytes()).toBeGreaterThanOrEqual(2 * mib);
  await volume.discard(100, 1000);
  expect(await qemu.fleecingBytes()).toBeGreaterThanOrEqual(2 * mib);
  await volume.discard(0, 100);
  await volume.discard(1100, 2 * mib - 1100);
  expect(await qemu.fleecingBytes()).toBeLessThan(64 * kib);
  expect(qemu.isAlive()).toBe(true);
});

test('E7: a full fleecing image is named', async () => {
  const data = randomBytes(8 * mib);
  const { qemu, volume } = await openSnapshot({
    disk: data,
    dirty: [{ offset: 0, data }],
    fleecingFull: true,
  });
  await qemu.guestWrite(0, randomBytes(64 * kib));
  await expect(copyVolume(volume, sinkOf(qemu.size), copyOptions())).rejects.toThrow(
    /cannot read .* of drive-scsi0: .* fleecing image is full; free space/,
  );
});

test('E8: a size that differs is an error', async () => {
  await expect(openSnapshot({ disk: disk() }, { size: 10 * mib })).rejects.toThrow(
    'was it resized?',
  );
});

test('a killed nbdfuse is an error of every read that is under way', async () => {
  const { fuse, volume } = await openSnapshot({ disk: disk() });
  fuse.program.kill('SIGKILL');
  await fuse.program;
  await expect(volume.read(0, 2 * mib)).rejects.toThrow(/^cannot read .*: nbdfuse, .* has ended/);
});

test('E10: a hung nbdfuse does not keep who cancels', async () => {
  const controller = new AbortController();
  const { fuse, volume } = await openSnapshot({ disk: disk() }, { signal: controller.signal });
  fuse.program.kill('SIGSTOP');
  const start = Date.now();
  const reads = [volume.read(0, 4 * mib), volume.read(4 * mib, 4 * mib)];
  setTimeout(() => controller.abort(), 50);
  for (const read of reads) await expect(read).rejects.toThrow(/^cancelled$/);
  expect(Date.now() - start).toBeLessThan(2000);
  fuse.program.kill('SIGCONT');
});

test('A6: nbdfuse ends with its owner', async () => {
  const sleep = execa('sleep', ['100'], { reject: false });
  const { fuse, volume } = await openSnapshot({ disk: disk() }, { owner: ownerOf(sleep.pid ?? 0) });
  expect(await readFile('/proc/self/mountinfo', 'utf8')).toContain(fuse.mountPoint);
  sleep.kill('SIGKILL');
  await sleep;
  await volume.close();
  expect(await readFile('/proc/self/mountinfo', 'utf8')).not.toContain(fuse.mountPoint);
  await fuse.program;
});

test('but stays while its owner lives', async () => {
  const { fuse, volume } = await openSnapshot({ disk: disk() });
  await volume.close();
  expect(await readFile('/proc/self/mountinfo', 'utf8')).toContain(fuse.mountPoint);
});

test('a block device is read the same way', async () => {
  const data = randomBytes(9 * mib + 512);
  const qemu = await qemuSnapshot({ disk: data });
  closers.push(qemu.close);
  const fuse = await startNbdfuse(qemu);
  closers.push(fuse.close);
  const { stdout: path } = await execa('losetup', ['--find', '--show', fuse.path]);
  closers.push(async () => void (await execa('losetup', ['--detach', path])));
  const volume = await openFileVolume({
    device: qemu.device,
    size: qemu.size,
    path,
    bitmapMode: 'none',
    nextRegions: regionsOf([0, qemu.size]),
    deallocate: async () => {},
    owner: ownerOf(process.pid),
    signal: new AbortController().signal,
  });
  closers.push(() => volume.close());
  const sink = sinkOf(qemu.size);
  await copyVolume(volume, sink, copyOptions());
  expect(sink.bytes.equals(data)).toBe(true);
});
