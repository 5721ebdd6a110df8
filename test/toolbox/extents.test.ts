import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { DataExtent } from '../../src/sdk/provider.ts';
import {
  alignInwards,
  type Block,
  cutBlocks,
  intersect,
  measureExtents,
  mergeExtents,
} from '../../src/toolbox/extents.ts';
import { anyExtents, collect, expand } from './support/extents.ts';

describe('extents', () => {
  test('merging changes no byte and leaves no neighbours of one kind', async () => {
    await fc.assert(
      fc.asyncProperty(anyExtents, async (extents) => {
        const merged = await collect(mergeExtents(extents));
        expect(expand(merged)).toEqual(expand(extents));
        for (const [i, extent] of merged.entries()) {
          const next = merged[i + 1];
          if (next?.offset === extent.offset + extent.length)
            expect(next.zero).not.toBe(extent.zero);
        }
      }),
    );
  });

  /** A block as extents again. */
  const uncut = ({ offset, length, data }: Block): DataExtent[] => {
    const extents: DataExtent[] = [];
    let at = offset;
    for (const part of data) {
      extents.push({ offset: at, length: part.offset - at, zero: true }, { ...part, zero: false });
      at = part.offset + part.length;
    }
    return [...extents, { offset: at, length: offset + length - at, zero: true }];
  };

  test('cutting covers the same bytes in one piece per block, and calls no data zero', async () => {
    await fc.assert(
      fc.asyncProperty(anyExtents, fc.integer({ min: 1, max: 20 }), async (extents, blockSize) => {
        const pieces = await collect(cutBlocks(extents, blockSize));
        const before = expand(extents);
        const after = expand(pieces.flatMap(uncut));
        expect([...after.keys()]).toEqual([...before.keys()]);
        for (const [byte, zero] of after) if (zero) expect(before.get(byte)).toBe(true);
        const blocks = pieces.map(({ offset }) => Math.floor(offset / blockSize));
        for (const [i, { offset, length }] of pieces.entries()) {
          expect(Math.floor((offset + length - 1) / blockSize)).toBe(blocks[i]);
          const last = pieces[i - 1];
          // One piece per block, unless there is a gap in it.
          if (blocks[i] === blocks[i - 1])
            expect(last && last.offset + last.length).toBeLessThan(offset);
        }
      }),
    );
  });

  test('cutting with a run length only joins whole blocks of zeroes', async () => {
    await fc.assert(
      fc.asyncProperty(anyExtents, fc.integer({ min: 1, max: 9 }), async (extents, blockSize) => {
        const single = await collect(cutBlocks(extents, blockSize));
        const runs = await collect(cutBlocks(extents, blockSize, blockSize * 3));
        expect(await collect(cutBlocks(runs.flatMap(uncut), blockSize))).toEqual(single);
        for (const { length, data } of runs) {
          expect(length).toBeLessThanOrEqual(data.length === 0 ? blockSize * 3 : blockSize);
        }
      }),
    );
  });

  test('zeroes in a block of data are not read, unless they are few', async () => {
    const KiB = 1024;
    const extents: DataExtent[] = [
      { offset: 0, length: 6 * 256 * KiB, zero: true },
      { offset: 6 * 256 * KiB, length: 4 * KiB, zero: false },
      { offset: 6 * 256 * KiB + 4 * KiB, length: 64 * KiB, zero: true },
      { offset: 6 * 256 * KiB + 68 * KiB, length: 4 * KiB, zero: false },
      { offset: 6 * 256 * KiB + 72 * KiB, length: 2 * 1024 * KiB, zero: true },
    ];
    const MiB = 1024 * KiB;
    expect(await collect(cutBlocks(extents, MiB))).toEqual([
      { offset: 0, length: MiB, data: [] },
      { offset: MiB, length: MiB, data: [{ offset: 1.5 * MiB, length: 72 * KiB }] },
      { offset: 2 * MiB, length: MiB, data: [] },
      { offset: 3 * MiB, length: 584 * KiB, data: [] },
    ]);
  });

  test('aligning inwards is the largest aligned part', () => {
    expect(alignInwards({ offset: 1, length: 9 }, 4)).toEqual({ offset: 4, length: 4 });
    expect(alignInwards({ offset: 4, length: 8 }, 4)).toEqual({ offset: 4, length: 8 });
    expect(alignInwards({ offset: 1, length: 6 }, 4)).toBeUndefined();
    expect(alignInwards({ offset: 0, length: 0 }, 4)).toBeUndefined();
  });

  test('the intersection is what both hold', () => {
    const a = { offset: 4, length: 4 };
    expect(intersect(a, { offset: 6, length: 9 })).toEqual({ offset: 6, length: 2 });
    expect(intersect(a, { offset: 0, length: 20 })).toEqual(a);
    expect(intersect(a, { offset: 8, length: 1 })).toBeUndefined();
  });

  test('data and zeroes are counted apart', async () => {
    const extents = mergeExtents([
      { offset: 0, length: 3, zero: true },
      { offset: 5, length: 4, zero: false },
      { offset: 20, length: 2, zero: true },
    ]);
    expect(await measureExtents(extents)).toEqual({ data: 4, zero: 5 });
  });
});
