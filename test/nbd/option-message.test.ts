import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { lengthPrefixed } from '../../src/nbd/bytes.ts';
import type { StreamParser } from '../../src/nbd/feed.ts';
import {
  decodeContextQuery,
  decodeInfoQuery,
  encodeOption,
  encodeOptionReply,
  type OptionMessage,
  parseOption,
  parseOptionReply,
} from '../../src/nbd/option-message.ts';
import { feedInPieces } from './support.ts';

function* record<T>(parser: () => StreamParser<T>, seen: T[]): StreamParser {
  for (;;) seen.push(yield* parser());
}

const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const data = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes));
const cuts = fc.array(fc.nat(), { maxLength: 20 });

test('cut points never change options and option replies', () => {
  const messages = fc.array(fc.record({ option: u32, type: u32, data }), { maxLength: 6 });
  fc.assert(
    fc.property(messages, cuts, (list, where) => {
      const replies: unknown[] = [];
      const encoded = list.map((m) => encodeOptionReply(m.option, m.type, m.data));
      feedInPieces(record(parseOptionReply, replies), Buffer.concat(encoded), where);
      expect(replies).toEqual(list);
      const options: (OptionMessage | undefined)[] = [];
      const sent = list.map((m) => encodeOption(m.option, m.data));
      feedInPieces(record(parseOption, options), Buffer.concat(sent), where);
      expect(options).toEqual(list.map((m) => ({ option: m.option, data: m.data })));
    }),
    { numRuns: 60 },
  );
});

test('an option of 4 GiB is refused before its data', () => {
  const bytes = encodeOption(7);
  bytes.writeUInt32BE(0xffff_ffff, 12);
  const seen: unknown[] = [];
  feedInPieces(record(parseOption, seen), bytes, []);
  expect(seen).toEqual([undefined]);
});

describe('lengths inside of options', () => {
  const good = Buffer.concat([
    lengthPrefixed('disk'),
    Buffer.from([0, 0, 0, 2]),
    lengthPrefixed('base:allocation'),
    lengthPrefixed(''),
  ]);

  test('a good one', () => {
    expect(decodeContextQuery(good)).toEqual({
      exportName: 'disk',
      queries: ['base:allocation', ''],
    });
    const query = Buffer.concat([lengthPrefixed('disk'), Buffer.from([0, 2, 0, 3, 0, 1])]);
    expect(decodeInfoQuery(query)).toEqual({ exportName: 'disk', wanted: [3, 1] });
  });

  test('cut short or too long', () => {
    for (let length = 0; length < good.length; length += 1) {
      expect(decodeContextQuery(good.subarray(0, length))).toBeUndefined();
    }
    expect(decodeContextQuery(Buffer.concat([good, Buffer.alloc(1)]))).toBeUndefined();
  });

  test('random bytes never throw', () => {
    fc.assert(
      fc.property(data, (bytes) => {
        decodeContextQuery(bytes);
        decodeInfoQuery(bytes);
      }),
      { numRuns: 500 },
    );
  });
});
