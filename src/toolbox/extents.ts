import type { DataExtent, Extent } from '../sdk/provider.ts';

/** Joins neighbours of one kind; the input is ascending and disjoint. */
export async function* mergeExtents(
  extents: AsyncIterable<DataExtent> | Iterable<DataExtent>,
): AsyncGenerator<DataExtent> {
  let last: DataExtent | undefined;
  for await (const extent of extents) {
    if (extent.length === 0) continue;
    if (last?.zero === extent.zero && last.offset + last.length === extent.offset) {
      last = { ...last, length: last.length + extent.length };
    } else {
      if (last !== undefined) yield last;
      last = extent;
    }
  }
  if (last !== undefined) yield last;
}

/** The common part; undefined if there is none. */
export function intersect(a: Extent, b: Extent): Extent | undefined {
  const offset = Math.max(a.offset, b.offset);
  const end = Math.min(a.offset + a.length, b.offset + b.length);
  return offset < end ? { offset, length: end - offset } : undefined;
}

/** The largest part whose both ends are multiples of `alignment`; undefined if there is none. */
export function alignInwards(extent: Extent, alignment: number): Extent | undefined {
  const offset = Math.ceil(extent.offset / alignment) * alignment;
  const end = Math.floor((extent.offset + extent.length) / alignment) * alignment;
  return offset < end ? { offset, length: end - offset } : undefined;
}

/** How many bytes have to be read, and how many are known to be zero. */
export async function measureExtents(
  extents: AsyncIterable<DataExtent>,
): Promise<{ data: number; zero: number }> {
  const sum = { data: 0, zero: 0 };
  for await (const { length, zero } of extents) {
    if (zero) sum.zero += length;
    else sum.data += length;
  }
  return sum;
}

/** A part of a volume that is copied in one go: its data, ascending, and zeroes around it. */
export interface Block extends Extent {
  readonly data: readonly Extent[];
}

/** Zeroes of less than this cost less to read than another request. */
const smallGap = 128 * 1024;

/** The data with a further extent behind it. */
function withData(data: readonly Extent[], next: Extent): Extent[] {
  const last = data.at(-1);
  const joins = last !== undefined && next.offset - (last.offset + last.length) < smallGap;
  if (!joins) return [...data, next];
  const length = next.offset + next.length - last.offset;
  return [...data.slice(0, -1), { offset: last.offset, length }];
}

/**
 * Cuts extents at multiples of `blockSize`. Extents that touch inside a block become one: a sink that
 * stores whole blocks then gets each in one call. Whole blocks of zeroes that follow each other come as
 * one of up to `zeroRun` bytes.
 */
export async function* cutBlocks(
  extents: AsyncIterable<DataExtent> | Iterable<DataExtent>,
  blockSize: number,
  zeroRun = blockSize,
): AsyncGenerator<Block> {
  const blockOf = (offset: number) => Math.floor(offset / blockSize);
  const endOf = (extent: Extent) => extent.offset + extent.length;
  let open: Block | undefined;
  for await (const extent of mergeExtents(extents)) {
    for (let { offset } = extent; offset < endOf(extent); ) {
      const blockEnd = (blockOf(offset) + 1) * blockSize;
      const starts = offset % blockSize === 0;
      const wholeBlocks = Math.floor(Math.min(zeroRun, endOf(extent) - offset) / blockSize);
      const length =
        extent.zero && starts && wholeBlocks > 0
          ? wholeBlocks * blockSize
          : Math.min(blockEnd, endOf(extent)) - offset;
      if (open === undefined || endOf(open) !== offset || starts) {
        if (open !== undefined) yield open;
        open = { offset, length: 0, data: [] };
      }
      const data: readonly Extent[] = extent.zero
        ? open.data
        : withData(open.data, { offset, length });
      open = { offset: open.offset, length: open.length + length, data };
      offset += length;
    }
  }
  if (open !== undefined) yield open;
}
