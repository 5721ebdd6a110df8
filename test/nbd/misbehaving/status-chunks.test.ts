import { describe, expect, test } from 'vitest';
import {
  encodeChunk,
  encodeDataChunk,
  encodeSimpleReply,
  encodeStatusChunk,
} from '../../../src/nbd/reply-message.ts';
import { answeredWith, expectBroken } from './transmission.ts';

const last = { final: true };
const one = { length: 4096, flags: 3 };
const id = 1;

const wrong: Record<string, [text: string, (cookie: bigint) => Buffer]> = {
  'of an unknown context': ['unknown context', (c) => encodeStatusChunk(c, 99, [one], last)],
  'of a context twice': [
    'twice',
    (c) =>
      Buffer.concat([
        encodeStatusChunk(c, id, [one], { final: false }),
        encodeStatusChunk(c, id, [one], last),
      ]),
  ],
  'without an extent': ['payload of 4', (c) => encodeStatusChunk(c, id, [], last)],
  'with a torn extent': ['payload of 15', (c) => encodeChunk(c, 5, 15, last)],
  'with far too many extents': ['payload of', (c) => encodeChunk(c, 5, 0xffff_fffc, last)],
  'with an empty extent': [
    'an empty extent',
    (c) => encodeStatusChunk(c, id, [one, { length: 0, flags: 0 }], last),
  ],
  'with extents behind what was asked for': [
    'more extents',
    (c) => encodeStatusChunk(c, id, [one, one, one], last),
  ],
  'that never comes': ['no block status', (c) => encodeChunk(c, 0, 0, last)],
  'that never comes, as a simple reply': ['no block status', (c) => encodeSimpleReply(c, 0)],
  'in the form of data': [
    'data that nobody asked for',
    (c) => Buffer.concat([encodeDataChunk(c, 0, 1, last), Buffer.alloc(1)]),
  ],
};

describe('wrong block status breaks the connection', () => {
  for (const [name, [text, answer]] of Object.entries(wrong)) {
    test(name, async () => {
      const connection = await answeredWith(({ cookie }) => answer(cookie));
      const status = connection.blockStatus('base:allocation', 0, 8192);
      await expectBroken(connection, text, status);
    });
  }
});

test('the last extent may reach beyond what was asked for, and is clipped', async () => {
  const connection = await answeredWith(({ cookie }) =>
    encodeStatusChunk(cookie, id, [one, { length: 0xffff_0000, flags: 0 }], last),
  );
  expect(await connection.blockStatus('base:allocation', 0, 8192)).toEqual([
    one,
    { length: 4096, flags: 0 },
  ]);
});
