import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DiscardQueue } from '../../src/toolbox/discards.ts';

describe('discards', () => {
  test('E6: only whole clusters are trimmed, each once, as soon as all of it was discarded', () => {
    const size = 200;
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 16 }),
        fc.uniqueArray(fc.integer({ min: 1, max: size - 1 }), { maxLength: 30 }),
        fc.array(fc.nat(), { minLength: 40, maxLength: 40 }),
        (alignment, cuts, order) => {
          const queue = new DiscardQueue(alignment);
          const ends = [0, ...cuts.sort((a, b) => a - b), size];
          const ranges = ends.slice(1).map((end, i) => ({ start: ends[i] ?? 0, end }));
          const shuffled = ranges
            .map((range, i) => ({ range, key: order[i] ?? 0 }))
            .sort((a, b) => a.key - b.key);
          const discarded = new Set<number>();
          const trimmed = new Set<number>();
          for (const { range } of shuffled) {
            for (let at = range.start; at < range.end; at++) discarded.add(at);
            let last = -1;
            for (const { offset, length } of queue.add(range.start, range.end - range.start)) {
              expect(offset % alignment).toBe(0);
              expect(length % alignment).toBe(0);
              expect(offset).toBeGreaterThan(last);
              last = offset + length;
              for (let at = offset; at < offset + length; at++) {
                expect(discarded.has(at)).toBe(true);
                expect(trimmed.has(at)).toBe(false);
                trimmed.add(at);
              }
            }
          }
          // The tail that is no whole cluster stays.
          expect(trimmed.size).toBe(Math.floor(size / alignment) * alignment);
        },
      ),
    );
  });

  test('a range that is discarded twice does not count for its neighbour', () => {
    const queue = new DiscardQueue(8);
    expect(queue.add(0, 4)).toEqual([]);
    expect(queue.add(0, 4)).toEqual([]);
    expect(queue.add(4, 4)).toEqual([{ offset: 0, length: 8 }]);
  });

  test('neighbours are trimmed in one go', () => {
    const queue = new DiscardQueue(8);
    expect(queue.add(0, 3)).toEqual([]);
    expect(queue.add(3, 30)).toEqual([{ offset: 0, length: 32 }]);
  });

  test('what it remembers is bounded', () => {
    const queue = new DiscardQueue(8);
    for (let i = 0; i < 5000; i++) queue.add(i * 8, 4);
    expect(queue.add(4, 4)).toEqual([]);
    expect(queue.add(4999 * 8 + 4, 4)).toEqual([{ offset: 4999 * 8, length: 8 }]);
  });
});
