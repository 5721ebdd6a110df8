import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  encodeChunk,
  encodeDataChunk,
  encodeErrorChunk,
  encodeHoleChunk,
  encodeSimpleReply,
  encodeStatusChunk,
  parseReplies,
  type ReplySink,
} from '../../src/nbd/reply-message.ts';
import { feedInPieces } from './support.ts';

/** Writes down what it is told; simple replies to even cookies carry 700 bytes. */
class Recorder implements ReplySink {
  readonly seen: unknown[][] = [];
  #filling: { note: unknown[]; target: Buffer } | undefined;

  begin(cookie: number): void {
    this.#filled();
    this.seen.push(['begin', cookie]);
  }
  simpleLength(cookie: number): number {
    return cookie % 2 === 0 ? 700 : 0;
  }
  data(cookie: number, offset: number | undefined, length: number): Uint8Array | undefined {
    const note: unknown[] = ['data', cookie, offset, length];
    this.seen.push(note);
    if (length % 3 === 0) return undefined;
    this.#filling = { note, target: Buffer.alloc(length) };
    return this.#filling.target;
  }
  hole(...args: unknown[]): void {
    this.seen.push(['hole', ...args]);
  }
  status(...args: unknown[]): void {
    this.seen.push(['status', ...args]);
  }
  error(...args: unknown[]): void {
    this.seen.push(['error', ...args]);
  }
  done(cookie: number): void {
    this.#filled();
    this.seen.push(['done', cookie]);
  }
  #filled(): void {
    this.#filling?.note.push(this.#filling.target.toString('hex'));
    this.#filling = undefined;
  }
}

const cookie = fc.integer({ min: 1, max: 2 ** 53 - 1 });
const offset = fc.integer({ min: 0, max: 2 ** 53 - 1 });
const u32 = fc.integer({ min: 1, max: 0xffff_ffff });
const final = fc.boolean();

const structured = fc.oneof(
  fc
    .record({ cookie, offset, final, data: fc.uint8Array({ minLength: 1, maxLength: 3000 }) })
    .map((r) =>
      Buffer.concat([encodeDataChunk(BigInt(r.cookie), r.offset, r.data.length, r), r.data]),
    ),
  fc
    .record({ cookie, offset, length: u32, final })
    .map((r) => encodeHoleChunk(BigInt(r.cookie), r.offset, r.length, r)),
  fc
    .record({ cookie, errno: u32, text: fc.string({ unit: 'grapheme' }), final, at: offset })
    .map((r) => encodeErrorChunk(BigInt(r.cookie), r.errno, r.text, { ...r, offset: r.at })),
  fc
    .record({ cookie, errno: u32, text: fc.string(), final })
    .map((r) => encodeErrorChunk(BigInt(r.cookie), r.errno, r.text, r)),
  fc
    .record({
      cookie,
      id: u32,
      extents: fc.array(fc.record({ length: u32, flags: u32 }), { minLength: 1, maxLength: 50 }),
      final,
    })
    .map((r) => encodeStatusChunk(BigInt(r.cookie), r.id, r.extents, r)),
  cookie.map((c) => encodeChunk(BigInt(c), 0, 0, { final: true })),
  cookie.map((c) => encodeSimpleReply(BigInt(c % 2 === 0 ? c + 1 : c), c % 3)),
);

const simple = fc.record({ cookie, errno: fc.integer({ min: 0, max: 2 }) }).map((r) => {
  const head = encodeSimpleReply(BigInt(r.cookie), r.errno);
  const hasData = r.errno === 0 && r.cookie % 2 === 0;
  return hasData ? Buffer.concat([head, Buffer.alloc(700, r.cookie % 251)]) : head;
});

describe('cut points never change what is parsed', () => {
  for (const [name, messages] of Object.entries({ structured, simple })) {
    for (const direct of [false, true]) {
      test(`${name} replies${direct ? ', data received in place' : ''}`, () => {
        const all = fc.array(messages, { minLength: 1, maxLength: 8 });
        const cuts = fc.array(fc.nat(), { maxLength: 20 });
        fc.assert(
          fc.property(all, cuts, (list, where) => {
            const stream = Buffer.concat(list);
            const whole = new Recorder();
            feedInPieces(parseReplies(whole, name === 'structured'), stream, []);
            const cut = new Recorder();
            feedInPieces(parseReplies(cut, name === 'structured'), stream, where, direct);
            expect(cut.seen).toEqual(whole.seen);
            expect(whole.seen.filter(([what]) => what === 'begin')).toHaveLength(list.length);
          }),
          { numRuns: 60 },
        );
      });
    }
  }
});

test('every message decodes to what was encoded', () => {
  const recorder = new Recorder();
  const stream = Buffer.concat([
    encodeDataChunk(7n, 2 ** 40 + 1, 4, { final: false }),
    Buffer.from('abcd'),
    encodeHoleChunk(7n, 5, 0xffff_ffff, { final: false }),
    encodeErrorChunk(8n, 22, 'nö', { final: true, offset: 2 ** 33 }),
    encodeErrorChunk(9n, 5, '', { final: true }),
    encodeStatusChunk(7n, 3, [{ length: 512, flags: 1 }], { final: true }),
    encodeSimpleReply(2n ** 32n + 1n, 28),
  ]);
  feedInPieces(parseReplies(recorder, true), stream, []);
  expect(recorder.seen).toEqual([
    ['begin', 7],
    ['data', 7, 2 ** 40 + 1, 4, '61626364'],
    ['begin', 7],
    ['hole', 7, 5, 0xffff_ffff],
    ['begin', 8],
    ['error', 8, 22, 'nö', 2 ** 33],
    ['done', 8],
    ['begin', 9],
    ['error', 9, 5, '', undefined],
    ['done', 9],
    ['begin', 7],
    ['status', 7, 3, [{ length: 512, flags: 1 }]],
    ['done', 7],
    ['begin', 2 ** 32 + 1],
    ['error', 2 ** 32 + 1, 28, ''],
    ['done', 2 ** 32 + 1],
  ]);
});
