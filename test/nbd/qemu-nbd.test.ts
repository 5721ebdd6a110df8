import { open, readFile, writeFile } from 'node:fs/promises';
import { execa } from 'execa';
import { describe, expect, test } from 'vitest';
import type { Scratch } from '../../fixtures/nbd/scratch.ts';
import { startQemuNbd } from '../../fixtures/nbd/servers.ts';
import { connectNbd } from '../../src/nbd/client.ts';
import { connected, pattern, scratch, wholeMap } from './support.ts';

const MiB = 1 << 20;
const size = 24 * MiB;

/** Data at the start, in the middle and at the end, holes between. */
async function rawDisk(room: Scratch) {
  const content = Buffer.alloc(size);
  content.set(pattern(5 * MiB), 0);
  content.set(pattern(MiB, 2), 12 * MiB);
  content.set(pattern(65536, 3), size - 65536);
  const file = await room.rawFile('disk.raw', size);
  const handle = await open(file, 'r+');
  for (const [from, to] of [
    [0, 5],
    [12, 13],
  ] as const) {
    await handle.write(content, from * MiB, (to - from) * MiB, from * MiB);
  }
  await handle.write(content, size - 65536, 65536, size - 65536);
  await handle.close();
  return { file, content };
}

describe.each(['raw', 'qcow2'] as const)('qemu-nbd, %s', (format) => {
  async function serve() {
    const room = await scratch();
    const { file, content } = await rawDisk(room);
    const qcow2 = room.path('disk.qcow2');
    if (format === 'qcow2') await execa('qemu-img', ['convert', '-O', 'qcow2', file, qcow2]);
    const served = format === 'raw' ? file : qcow2;
    return {
      room,
      content,
      file: served,
      ...(await startQemuNbd(room, { file: served, format, args: ['--discard=unmap'] })),
    };
  }

  test('the whole disk, in one connection and many requests at once', async () => {
    const { content, ...server } = await serve();
    const connection = await connected(server);
    expect(connection.size).toBe(size);
    expect(connection.info).toMatchObject({ readOnly: false, canTrim: true, canDf: true });
    const step = 300_000 - (300_000 % connection.info.blockSize.minimum);
    const offsets = Array.from({ length: Math.ceil(size / step) }, (_, i) => i * step);
    const read = await Promise.all(
      offsets.map((offset, i) =>
        connection.read(offset, Math.min(step, size - offset), { df: i % 2 === 0 }),
      ),
    );
    expect(Buffer.concat(read).equals(content)).toBe(true);
    expect((await connection.read(0, size)).equals(content)).toBe(true);
  });

  test('block status tells zeroes from data', async () => {
    const { content, ...server } = await serve();
    const connection = await connected({ ...server, contexts: ['base:allocation', 'no:such'] });
    expect(connection.contexts).toEqual(new Set(['base:allocation']));
    const map = await wholeMap(connection, 'base:allocation');
    const zero = map.filter(({ flags }) => (flags & 2) !== 0);
    expect(zero.reduce((sum, { length }) => sum + length, 0)).toBe(size - 6 * MiB - 65536);
    for (const { offset, length } of zero) {
      expect(content.subarray(offset, offset + length).every((byte) => byte === 0)).toBe(true);
    }
    await expect(connection.blockStatus('no:such', 0, 512)).rejects.toThrow(RangeError);
  });

  test('write, zeroes, trim and flush', async () => {
    const { content, room, file, ...server } = await serve();
    const connection = await connected(server);
    const data = pattern(3 * MiB, 9);
    await Promise.all([
      connection.write(6 * MiB, data),
      connection.write(10 * MiB, data.subarray(0, 65536), { fua: true }),
      connection.writeZeroes(MiB, MiB),
      connection.trim(2 * MiB, MiB),
    ]);
    await connection.flush();
    content.set(data, 6 * MiB);
    content.set(data.subarray(0, 65536), 10 * MiB);
    content.fill(0, MiB, 3 * MiB);
    expect((await connection.read(0, size)).equals(content)).toBe(true);
    await connection.close();
    const raw = room.path('after.raw');
    await execa('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', file, raw]);
    expect((await readFile(raw)).equals(content)).toBe(true);
  });

  test('several connections at once', async () => {
    const { content, ...server } = await serve();
    const four = await Promise.all(Array.from({ length: 4 }, () => connected(server)));
    const parts = await Promise.all(four.map((one, i) => one.read((i * size) / 4, size / 4)));
    expect(Buffer.concat(parts).equals(content)).toBe(true);
  });
});

test('what may not be sent is refused with RangeError, and nothing is sent', async () => {
  const room = await scratch();
  const file = await room.rawFile('disk.raw', 64 * MiB);
  const server = await startQemuNbd(room, { file, format: 'raw', args: ['-r'] });
  const connection = await connected({ ...server, contexts: ['base:allocation'] });
  const { maximum } = connection.info.blockSize;
  expect(maximum).toBe(32 * MiB);
  const refused: Record<string, Promise<unknown>> = {
    'read of 33558528 bytes at 0: the server takes 33554432': connection.read(0, maximum + 4096),
    'the export ends at 67108864': connection.read(64 * MiB - 512, 1024),
    'nothing to do': connection.read(0, 0),
    'not whole numbers': connection.read(-512, 512),
    'read of 512 bytes at 0.5': connection.read(0.5, 512),
    'read of NaN bytes': connection.read(0, Number.NaN),
    'write of 512 bytes at 0: the export is read-only': connection.write(0, Buffer.alloc(512)),
    'trim of 512 bytes at 0: ': connection.trim(0, 512),
    'write of zeroes of 512 bytes at 0: ': connection.writeZeroes(0, 512),
    'did not grant': connection.blockStatus('qemu:dirty-bitmap:x', 0, 512),
  };
  for (const [text, promise] of Object.entries(refused)) {
    const error = await promise.catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(RangeError);
    expect((error as Error).message).toContain(text);
  }
  expect((await connection.read(0, maximum)).length).toBe(maximum);
});

test('an export that is not there', async () => {
  const room = await scratch();
  const file = room.path('disk.raw');
  await writeFile(file, Buffer.alloc(MiB));
  const server = await startQemuNbd(room, { file, format: 'raw' });
  await expect(connectNbd({ ...server, exportName: 'other' })).rejects.toMatchObject({
    name: 'NbdError',
    code: 'ENOENT',
  });
});
