import type { Extent } from '../sdk/provider.ts';
import { alignInwards } from './extents.ts';

/** Part-discarded clusters that are remembered; beyond that the oldest stay allocated. */
const maxPartial = 4096;

/**
 * Turns discards of any alignment into whole clusters: a cluster is freed once all of it was discarded,
 * by one call or by several. QEMU's TRIM frees only whole ones, and plain QEMU 7.2 aborts on less [E6].
 */
export class DiscardQueue {
  readonly #alignment: number;
  readonly #partial = new Map<number, Extent[]>();

  constructor(alignment: number) {
    this.#alignment = alignment;
  }

  /** What may be trimmed now, ascending. */
  add(offset: number, length: number): Extent[] {
    const end = offset + length;
    const core = alignInwards({ offset, length }, this.#alignment);
    const edges =
      core === undefined
        ? this.#split(offset, end)
        : [...this.#split(offset, core.offset), ...this.#split(core.offset + core.length, end)];
    const clusters = edges.flatMap((edge) => this.#fill(edge));
    return join([...clusters, ...(core === undefined ? [] : [core])]);
  }

  /** At most two clusters: less than one whole cluster lies between the ends. */
  #split(offset: number, end: number): Extent[] {
    const border = Math.ceil((offset + 1) / this.#alignment) * this.#alignment;
    const cuts = border < end ? [offset, border, end] : [offset, end];
    return cuts
      .slice(1)
      .map((cut, i) => ({ offset: cuts[i] ?? cut, length: cut - (cuts[i] ?? cut) }))
      .filter((part) => part.length > 0);
  }

  #fill(part: Extent): Extent[] {
    const start = Math.floor(part.offset / this.#alignment) * this.#alignment;
    const parts = join([...(this.#partial.get(start) ?? []), part]);
    this.#partial.delete(start);
    if (parts[0]?.length === this.#alignment) return parts;
    this.#partial.set(start, parts);
    const [oldest] = this.#partial.keys();
    if (this.#partial.size > maxPartial && oldest !== undefined) this.#partial.delete(oldest);
    return [];
  }
}

/** Sorts, and joins what touches or overlaps. */
function join(extents: Extent[]): Extent[] {
  const joined: Extent[] = [];
  for (const extent of extents.sort((a, b) => a.offset - b.offset)) {
    const last = joined.at(-1);
    const end = extent.offset + extent.length;
    if (last !== undefined && extent.offset <= last.offset + last.length) {
      const length = Math.max(last.length, end - last.offset);
      joined[joined.length - 1] = { offset: last.offset, length };
    } else {
      joined.push(extent);
    }
  }
  return joined;
}
