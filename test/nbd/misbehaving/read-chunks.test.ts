import { describe, expect, test } from 'vitest';
import { startPeer } from '../../../fixtures/nbd/peer.ts';
import {
  encodeChunk,
  encodeDataChunk,
  encodeErrorChunk,
  encodeHoleChunk,
  encodeSimpleReply,
  encodeStatusChunk,
} from '../../../src/nbd/reply-message.ts';
import { connected, scratch } from '../support.ts';
import { answeredWith, expectBroken } from './transmission.ts';

const more = { final: false };
const last = { final: true };
const data = (cookie: bigint, offset: number, length: number, options = last) =>
  Buffer.concat([encodeDataChunk(cookie, offset, length, options), Buffer.alloc(length, 7)]);

const wrong: Record<string, [text: string, (cookie: bigint) => Buffer]> = {
  'data in front of what was asked for': ['outside', (c) => data(c, 511, 512)],
  'data behind it': ['outside', (c) => data(c, 1024, 512)],
  'an overlong chunk': ['outside', (c) => data(c, 512, 513)],
  'an offset beyond 2^53': ['outside', (c) => data(c, 2 ** 52, 1)],
  'a hole outside': ['outside', (c) => encodeHoleChunk(c, 512, 0xffff_ffff, last)],
  'an empty hole': ['0 bytes at 512', (c) => encodeHoleChunk(c, 512, 0, last)],
  'success without data': ['without data', (c) => encodeChunk(c, 0, 0, last)],
  'only a part': ['lacks a part', (c) => data(c, 512, 100)],
  'an empty chunk that is not final': ['not the final one', (c) => encodeChunk(c, 0, 0, more)],
  'an unknown type': ['unknown type 77', (c) => encodeChunk(c, 77, 0, last)],
  'an announced payload of 4 GiB': [
    'payload of 4294967295',
    (c) => encodeChunk(c, 1, 0xffff_ffff, last),
  ],
  'a payload on an empty chunk': ['payload of 5', (c) => encodeChunk(c, 0, 5, last)],
  'data without a byte': ['payload of 8', (c) => encodeChunk(c, 1, 8, last)],
  'a hole of the wrong length': ['payload of 13', (c) => encodeChunk(c, 2, 13, last)],
  'an error of the wrong length': ['payload of 5', (c) => encodeChunk(c, 0x8001, 5, last)],
  'an error of 4 GiB': ['payload of 4294967295', (c) => encodeChunk(c, 0x8001, 0xffff_ffff, last)],
  'an error whose message is longer than itself': [
    'payload of 9',
    (c) => {
      const chunk = encodeErrorChunk(c, 5, 'abc', last);
      chunk.writeUInt16BE(4, 24);
      return chunk;
    },
  ],
  'an error of number 0': ['number 0', (c) => encodeErrorChunk(c, 0, '', last)],
  'an error outside': [
    'an error at 2000',
    (c) => encodeErrorChunk(c, 5, '', { final: true, offset: 2000 }),
  ],
  'block status': [
    'nobody asked for',
    (c) => encodeStatusChunk(c, 1, [{ length: 512, flags: 0 }], last),
  ],
  'a simple reply': ['a simple reply to a read', (c) => encodeSimpleReply(c, 0)],
  'a simple reply with an error': ['a simple reply to a read', (c) => encodeSimpleReply(c, 5)],
  junk: ['junk in place', () => Buffer.from('this is not a reply at all')],
  'two chunks though that was forbidden': [
    'fragmented',
    (c) => Buffer.concat([data(c, 512, 256, more), data(c, 768, 256)]),
  ],
};

describe('wrong replies to a read break the connection', () => {
  for (const [name, [text, answer]] of Object.entries(wrong)) {
    test(name, async () => {
      const connection = await answeredWith(({ cookie }) => answer(cookie));
      await expectBroken(connection, text, connection.read(512, 512));
    });
  }

  test('the same data twice', async () => {
    const connection = await answeredWith(({ cookie }) =>
      Buffer.concat([data(cookie, 600, 100, more), data(cookie, 512, 89, last)]),
    );
    await expectBroken(connection, 'the same data twice', connection.read(512, 512, { df: false }));
  });
});

describe('odd but right replies to a read', () => {
  test('pieces and holes in any order, an empty final chunk', async () => {
    const connection = await answeredWith(({ cookie }) =>
      Buffer.concat([
        data(cookie, 900, 124, more),
        data(cookie, 512, 100, more),
        encodeHoleChunk(cookie, 612, 200, more),
        data(cookie, 812, 88, more),
        encodeChunk(cookie, 0, 0, last),
      ]),
    );
    const expected = Buffer.alloc(512, 7).fill(0, 100, 300);
    expect(await connection.read(512, 512, { df: false })).toEqual(expected);
  });

  test('errors with and without data: the first one counts, the connection stays up', async () => {
    const peer = await startPeer(await scratch(), async (one) => {
      await one.shakeHands();
      const { cookie } = await one.request();
      one.send(
        data(cookie, 512, 512, more),
        encodeErrorChunk(cookie, 28, 'no room\nat all', { final: false, offset: 600 }),
        encodeErrorChunk(cookie, 5, '', last),
      );
      const next = await one.request();
      one.send(encodeHoleChunk(next.cookie, 0, 512, last));
    });
    const connection = await connected(peer);
    await expect(connection.read(512, 512)).rejects.toMatchObject({
      code: 'ENOSPC',
      errno: 28,
      message: 'NBD read of 512 bytes at 512 failed with ENOSPC at 600: no room at all',
    });
    expect(await connection.read(0, 512)).toEqual(Buffer.alloc(512));
  });

  test('an unknown kind of error, an unknown number and unknown flags', async () => {
    const connection = await answeredWith(({ cookie }) => {
      const chunk = encodeErrorChunk(cookie, 9999, 'well', { final: true, offset: 512 });
      chunk.writeUInt16BE(0x8123, 6);
      chunk.writeUInt16BE(0xffff, 4);
      return chunk;
    });
    await expect(connection.read(512, 512)).rejects.toMatchObject({ code: 'EINVAL', errno: 22 });
  });
});
