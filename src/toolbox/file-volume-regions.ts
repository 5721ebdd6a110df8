import { BackupError } from '../protocol/errors.ts';
import type { DataExtent, DeviceName } from '../sdk/provider.ts';

/** Asks for the next dirty regions, each an offset and a length; fewer than `max` if there are no more. */
export type NextRegions = (max: number) => Promise<readonly (readonly [number, number])[]>;

const batch = 1000;

/** Dirty regions that can be asked for once only, kept so that they can be gone through again and again. */
export class DirtyRegions {
  readonly #volume: { readonly device: DeviceName; readonly size: number };
  readonly #next: NextRegions;
  readonly #whenComplete: (found: number) => Promise<void>;
  /** Begin and end of each, one after the other: a disk of 1 TiB may have 130,000. */
  readonly #bounds: number[] = [];
  #asking: Promise<void> | undefined;
  #complete = false;

  /** `whenComplete` may reject if it has reason to doubt that these were all. */
  constructor(
    volume: { readonly device: DeviceName; readonly size: number },
    next: NextRegions,
    whenComplete: (found: number) => Promise<void> = async () => {},
  ) {
    this.#volume = volume;
    this.#next = next;
    this.#whenComplete = whenComplete;
  }

  async *extents(): AsyncGenerator<DataExtent> {
    for (let i = 0; ; i += 2) {
      while (i >= this.#bounds.length && !this.#complete) await this.#more();
      const [offset, end] = [this.#bounds[i], this.#bounds[i + 1]];
      if (offset === undefined || end === undefined) return;
      yield { offset, length: end - offset, zero: false };
    }
  }

  /** What fails once fails for ever: the regions of that answer will not come again. */
  #more(): Promise<void> {
    this.#asking ??= this.#ask().then(() => {
      this.#asking = undefined;
    });
    return this.#asking;
  }

  async #ask(): Promise<void> {
    const regions = await this.#next(batch);
    for (const [offset, length] of regions) {
      const end = offset + length;
      const { device, size } = this.#volume;
      if (length <= 0 || offset < (this.#bounds.at(-1) ?? 0) || end > size) {
        const text = `${device}: the dirty region ${offset}+${length} is out of order or beyond ${size}`;
        throw new BackupError(`${text}: run the backup again`);
      }
      this.#bounds.push(offset, end);
    }
    if (regions.length >= batch) return;
    await this.#whenComplete(this.#bounds.length / 2);
    this.#complete = true;
  }
}
