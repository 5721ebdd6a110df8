import { BackupError, messageOf } from '../../protocol/errors.ts';
import type { DataExtent, RawImage } from '../../sdk/provider.ts';
import type { ChunkStore } from './chunk-store.ts';
import { chunkLength, type DiskIndex } from './disk-index.ts';
import { chunkSize } from './layout.ts';

/** Chunks decoded ahead of a sequential reader. */
const ahead = 3;
/** Decoded chunks that are kept: what several readers are in, and what lies ahead of them. */
const kept = 8;

const zeroes = Buffer.alloc(chunkSize);

/** A disk of the store, chunk by chunk; a reader that asks for small pieces costs one decode per chunk. */
export class ChunkImage implements RawImage {
  readonly size: number;
  readonly #index: DiskIndex;
  readonly #chunks: ChunkStore;
  readonly #label: string;
  /** In the order of their last use. */
  readonly #cache = new Map<number, Promise<Buffer>>();
  #last = -1;

  /** `label` names archive and device in errors. */
  constructor(index: DiskIndex, chunks: ChunkStore, label: string) {
    this.size = index.size;
    this.#index = index;
    this.#chunks = chunks;
    this.#label = label;
  }

  async read(offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array> {
    if (offset < 0 || length < 0 || offset + length > this.size) {
      throw new RangeError(`${offset}+${length} is outside of a disk of ${this.size} bytes`);
    }
    const parts: Buffer[] = [];
    for (let at = offset; at < offset + length; ) {
      signal?.throwIfAborted();
      const position = Math.floor(at / chunkSize);
      const within = at - position * chunkSize;
      const end = Math.min(within + offset + length - at, chunkSize);
      parts.push((await this.#chunk(position)).subarray(within, end));
      at += end - within;
    }
    const [only, ...others] = parts;
    return only !== undefined && others.length === 0 ? only : Buffer.concat(parts);
  }

  async extents(offset: number, length: number): Promise<DataExtent[]> {
    const extents: DataExtent[] = [];
    for (let at = offset; at < offset + length; ) {
      const position = Math.floor(at / chunkSize);
      const end = Math.min((position + 1) * chunkSize, offset + length);
      const zero = this.#index.isZero(position);
      const last = extents.at(-1);
      if (last?.zero === zero) extents[extents.length - 1] = { ...last, length: end - last.offset };
      else extents.push({ offset: at, length: end - at, zero });
      at = end;
    }
    return extents;
  }

  async close(): Promise<void> {
    const pending = [...this.#cache.values()];
    this.#cache.clear();
    await Promise.allSettled(pending);
  }

  #chunk(position: number): Promise<Buffer> {
    const chunk = this.#load(position);
    if (position === this.#last + 1 || this.#last === -1) this.#readAhead(position);
    this.#last = position;
    return chunk;
  }

  #readAhead(position: number): void {
    const end = Math.min(position + 1 + ahead, this.#index.count);
    for (let next = position + 1; next < end; next++) {
      // Whoever reads the chunk gets the error.
      this.#load(next).catch(() => undefined);
    }
  }

  #load(position: number): Promise<Buffer> {
    const length = chunkLength(this.size, position);
    if (this.#index.isZero(position)) return Promise.resolve(zeroes.subarray(0, length));
    const known = this.#cache.get(position);
    this.#cache.delete(position);
    const chunk = known ?? this.#decode(position, length);
    this.#cache.set(position, chunk);
    const [oldest] = this.#cache.keys();
    if (this.#cache.size > kept && oldest !== undefined) this.#cache.delete(oldest);
    return chunk;
  }

  #decode(position: number, length: number): Promise<Buffer> {
    const chunk = this.#chunks.get(this.#index.digest(position), length);
    return chunk.catch((cause: unknown) => {
      this.#cache.delete(position);
      throw new BackupError(`${this.#label}: ${messageOf(cause)}`, { cause });
    });
  }
}
