import fc from 'fast-check';
import { expect, test } from 'vitest';
import { LineSplitter } from '../../src/rpc/lines.ts';

const cut = (bytes: Buffer, cuts: readonly number[]): Buffer[] => {
  const ends = [...cuts.map((c) => c % (bytes.length + 1)), bytes.length].sort((a, b) => a - b);
  return ends.map((end, i) => bytes.subarray(ends[i - 1] ?? 0, end));
};

test('cut points never change the lines', () => {
  const texts = fc.array(fc.string({ unit: 'grapheme' }).map((s) => s.replaceAll('\n', ' ')));
  fc.assert(
    fc.property(texts, fc.array(fc.nat()), (lines, cuts) => {
      const splitter = new LineSplitter();
      const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(''));
      const got = cut(bytes, cuts).flatMap((part) => splitter.push(part));
      expect(got).toEqual(lines.map((line) => Buffer.from(line).toString()));
    }),
  );
});

test('a line over the limit is refused before it ends, however it is cut', () => {
  for (const size of [1, 7, 100]) {
    const splitter = new LineSplitter(1000);
    const feed = () => {
      for (let i = 0; i <= 1000; i += size) splitter.push(Buffer.alloc(size, 'x'));
    };
    expect(feed).toThrow('longer than 1000 bytes');
  }
});

test('many lines of the limit are no long line', () => {
  const splitter = new LineSplitter(10);
  const lines = splitter.push(Buffer.from('0123456789\n'.repeat(1000)));
  expect(lines).toHaveLength(1000);
});
