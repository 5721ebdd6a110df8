import fc from 'fast-check';
import type { DataExtent } from '../../../src/sdk/provider.ts';

/** Ascending, disjoint, with and without gaps. */
export const anyExtents = fc
  .array(fc.tuple(fc.integer({ min: 0, max: 30 }), fc.integer({ min: 1, max: 40 }), fc.boolean()), {
    maxLength: 12,
  })
  .map((rows) => {
    let at = 0;
    return rows.map(([gap, length, zero]): DataExtent => {
      const offset = at + (gap > 15 ? 0 : gap);
      at = offset + length;
      return { offset, length, zero };
    });
  });

/** Byte by byte: whether it is zero. */
export function expand(extents: readonly DataExtent[]): Map<number, boolean> {
  const bytes = new Map<number, boolean>();
  for (const { offset, length, zero } of extents) {
    for (let i = 0; i < length; i++) bytes.set(offset + i, zero);
  }
  return bytes;
}

export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}
