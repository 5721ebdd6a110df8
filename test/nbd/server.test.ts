import { mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { execa } from 'execa';
import { describe, expect, test } from 'vitest';
import type { Scratch } from '../../fixtures/nbd/scratch.ts';
import { type NbdImage, serveNbd } from '../../src/nbd/server.ts';
import { connected, pattern, scratch, wholeMap } from './support.ts';

const MiB = 1 << 20;
const size = 20 * MiB + 1536;
const content = Buffer.alloc(size);
content.set(pattern(3 * MiB), 0);
content.set(pattern(1000, 2), 8 * MiB);
content.set(pattern(1536, 3), size - 1536);

/** Extents of 64 KiB, as the content has them. */
const pieces = Array.from({ length: Math.ceil(size / 65536) }, (_, i) => {
  const piece = content.subarray(i * 65536, (i + 1) * 65536);
  return { offset: i * 65536, length: piece.length, zero: piece.every((byte) => byte === 0) };
});
const extents = async (offset: number, length: number) =>
  pieces.slice(Math.floor(offset / 65536), Math.ceil((offset + length) / 65536));
const image: NbdImage = {
  size,
  read: async (offset, length) => content.subarray(offset, offset + length),
  extents,
};

async function served(room: Scratch, changes: Partial<NbdImage> = {}) {
  const options = { socketPath: room.path('own.sock'), exportName: 'disk' };
  const server = await serveNbd({ ...options, image: { ...image, ...changes } });
  room.defer(() => server.close());
  return { ...options, server, uri: `nbd+unix:///disk?socket=${options.socketPath}` };
}

describe('other clients are happy with our server', () => {
  test('nbdinfo', async () => {
    const { uri } = await served(await scratch());
    const { stdout } = await execa('nbdinfo', ['--json', uri]);
    const [found] = JSON.parse(stdout).exports;
    expect(found).toMatchObject({
      'export-name': 'disk',
      'export-size': size,
      contexts: ['base:allocation'],
      is_read_only: true,
      can_df: true,
      can_multi_conn: true,
      can_trim: false,
      can_zero: false,
    });
    const list = await execa('nbdinfo', ['--list', '--json', uri]);
    expect(JSON.parse(list.stdout).exports).toHaveLength(1);
    const map = await execa('nbdinfo', ['--map', '--json', uri]);
    expect(JSON.parse(map.stdout)).toMatchObject([
      { offset: 0, length: 3 * MiB, type: 0 },
      { offset: 3 * MiB, length: 5 * MiB, type: 3 },
      { offset: 8 * MiB, length: 65536, type: 0 },
      { offset: 8 * MiB + 65536, length: 12 * MiB - 65536, type: 3 },
      { offset: 20 * MiB, length: 1536, type: 0 },
    ]);
  });

  test.each([[[]], [['--no-extents']], [['--synchronous', '--connections=1']]])(
    'nbdcopy %j',
    async (args) => {
      const room = await scratch();
      const { uri } = await served(room);
      await execa('nbdcopy', [...args, uri, room.path('copy.raw')]);
      expect((await readFile(room.path('copy.raw'))).equals(content)).toBe(true);
    },
  );

  test('qemu-img convert and compare', async () => {
    const room = await scratch();
    const { uri } = await served(room);
    const copy = room.path('copy.qcow2');
    await execa('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', uri, copy]);
    await execa('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', uri, copy]);
    const raw = room.path('copy.raw');
    await execa('qemu-img', ['convert', '-O', 'raw', copy, raw]);
    expect((await readFile(raw)).equals(content)).toBe(true);
  });

  test('nbdfuse: the image as a regular file', async () => {
    const room = await scratch();
    const { socketPath } = await served(room);
    const file = room.path('mnt/disk.raw');
    await mkdir(room.path('mnt'));
    await writeFile(file, '');
    const fuse = room.start('nbdfuse', ['-r', file, `nbd+unix:///disk?socket=${socketPath}`]);
    room.defer(() => execa('fusermount3', ['-u', file], { reject: false }));
    await expect.poll(async () => (await stat(file)).size, { timeout: 5000 }).toBe(size);
    expect((await stat(file)).isFile()).toBe(true);
    expect((await readFile(file)).equals(content)).toBe(true);
    await execa('fusermount3', ['-u', file]);
    await fuse;
  });
});

describe('our client and our server', () => {
  test('data and block status', async () => {
    const connection = await connected({
      ...(await served(await scratch())),
      contexts: ['base:allocation'],
    });
    expect(connection.info).toMatchObject({ readOnly: true, canMultiConn: true, canTrim: false });
    expect((await connection.read(0, size)).equals(content)).toBe(true);
    expect((await connection.read(size - 7, 7)).equals(content.subarray(size - 7))).toBe(true);
    const map = await wholeMap(connection, 'base:allocation');
    expect(map).toHaveLength(5);
    const answer = await connection.blockStatus('base:allocation', 0, size);
    expect(answer).toEqual(map.map(({ length, flags }) => ({ length, flags })));
  });

  test('without extents no block status is offered', async () => {
    const { extents: _, ...plain } = image;
    const room = await scratch();
    const options = { socketPath: room.path('own.sock'), exportName: 'disk' };
    const server = await serveNbd({ ...options, image: plain });
    room.defer(() => server.close());
    const connection = await connected({ ...options, contexts: ['base:allocation'] });
    expect(connection.contexts.size).toBe(0);
    expect((await connection.read(0, MiB)).equals(content.subarray(0, MiB))).toBe(true);
  });

  test('an image that throws, or lies, is EIO for that request only', async () => {
    const connection = await connected({
      ...(await served(await scratch(), {
        read: async (offset, length) => {
          if (offset === 512) throw new Error('the disk\nis on fire');
          return content.subarray(offset, offset + length - (offset === 1024 ? 1 : 0));
        },
        extents: async (offset) => {
          if (offset === 0) return [];
          return [{ offset: offset + 512, length: 512, zero: true }];
        },
      })),
      contexts: ['base:allocation'],
    });
    await expect(connection.read(512, 512)).rejects.toMatchObject({
      code: 'EIO',
      message: expect.stringMatching(/EIO: the disk is on fire$/),
    });
    await expect(connection.read(1024, 512)).rejects.toMatchObject({ code: 'EIO' });
    await expect(connection.blockStatus('base:allocation', 0, 512)).rejects.toMatchObject({
      code: 'EIO',
    });
    await expect(connection.blockStatus('base:allocation', 512, 512)).rejects.toMatchObject({
      code: 'EIO',
    });
    expect((await connection.read(0, 512)).equals(content.subarray(0, 512))).toBe(true);
  });

  test('close ends clients, aborts reads, removes the socket and may be called twice', async () => {
    let aborted: Promise<unknown> | undefined;
    const own = await served(await scratch(), {
      read: (_offset, _length, signal) => {
        const waiting = new Promise<Uint8Array>((_resolve, reject) => {
          signal?.addEventListener('abort', () => reject(signal.reason));
        });
        aborted = waiting.catch((error) => error);
        return waiting;
      },
    });
    const connection = await connected(own);
    const read = connection.read(0, 512);
    read.catch(() => {});
    await expect.poll(() => aborted !== undefined).toBe(true);
    await Promise.all([own.server.close(), own.server.close()]);
    await expect(read).rejects.toMatchObject({ code: 'ECONNRESET' });
    expect(await aborted).toBeInstanceOf(Error);
    await expect(stat(own.socketPath)).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('a path that is taken or too long is an error', async () => {
    const own = await served(await scratch());
    await expect(serveNbd({ ...own, image })).rejects.toMatchObject({ code: 'EADDRINUSE' });
    const long = { ...own, socketPath: `/${'x'.repeat(107)}`, image };
    await expect(serveNbd(long)).rejects.toThrow(RangeError);
  });
});
