import { BackupError } from '../../protocol/errors.ts';
import type { VolumeSink } from '../../toolbox/copy.ts';
import { isZero } from '../../toolbox/zero.ts';
import { zeroDigest } from './chunk-codec.ts';
import type { ChunkStore } from './chunk-store.ts';
import { chunkLength, DiskIndex } from './disk-index.ts';
import { chunkSize } from './layout.ts';

/** Turns the blocks of a copy into chunks and their index. */
export class ChunkSink implements VolumeSink {
  readonly index: DiskIndex;
  readonly #chunks: ChunkStore;
  readonly #device: string;
  /** Which entries are known: all with a base, else those that were written. */
  readonly #known: Uint8Array;
  /** Chunks of which a part is being replaced: two parts of one must not overwrite each other. */
  readonly #patches = new Map<number, Promise<void>>();
  /** Bytes that the store grew by, and chunks that it had. */
  readonly stats = { stored: 0, reused: 0 };

  constructor(device: string, size: number, chunks: ChunkStore, base: DiskIndex | undefined) {
    if (base !== undefined && base.size !== size) {
      throw new BackupError(`${device} has ${size} bytes, the archive before has ${base.size}`);
    }
    this.index = base ?? new DiskIndex(size);
    this.#device = device;
    this.#chunks = chunks;
    this.#known = new Uint8Array(this.index.count).fill(base === undefined ? 0 : 1);
  }

  async write(offset: number, data: Buffer, signal: AbortSignal): Promise<void> {
    // What was read too late must not begin to store after the end.
    signal.throwIfAborted();
    const position = this.#position(offset, data.length);
    if (data.length === chunkLength(this.index.size, position)) await this.#store(position, data);
    else await this.#patch(position, offset - position * chunkSize, data, signal);
  }

  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    const position = this.#position(offset, length);
    if (length === chunkLength(this.index.size, position)) this.#set(position, zeroDigest);
    else await this.#patch(position, offset - position * chunkSize, Buffer.alloc(length), signal);
  }

  /** Rejects if a part of the disk came neither from the source nor from the archive before. */
  assertComplete(): void {
    const missing = this.#known.indexOf(0);
    if (missing < 0) return;
    throw this.#unknown(missing);
  }

  #unknown(position: number): BackupError {
    return new BackupError(
      `${this.#device}: the bitmap leaves out the area at byte ${position * chunkSize}, and no archive ` +
        'of this store has it: run the backup again, all will be read',
    );
  }

  #position(offset: number, length: number): number {
    const position = Math.floor(offset / chunkSize);
    const end = Math.min((position + 1) * chunkSize, this.index.size);
    if (length > 0 && offset >= 0 && offset + length <= end) return position;
    throw new RangeError(
      `${this.#device}: ${offset}+${length} is not within one chunk of the disk`,
    );
  }

  #set(position: number, digest: Uint8Array): void {
    this.index.set(position, digest);
    this.#known[position] = 1;
  }

  async #store(position: number, content: Buffer): Promise<void> {
    const { digest, written } = await this.#chunks.put(content);
    this.#set(position, digest);
    if (written === 0) this.stats.reused++;
    this.stats.stored += written;
  }

  async #patch(position: number, at: number, data: Buffer, signal: AbortSignal): Promise<void> {
    const before = this.#patches.get(position) ?? Promise.resolve();
    const patch = before.then(() => this.#overlay(position, at, data, signal));
    this.#patches.set(position, patch);
    await patch.finally(() => {
      if (this.#patches.get(position) === patch) this.#patches.delete(position);
    });
  }

  async #overlay(position: number, at: number, data: Buffer, signal: AbortSignal): Promise<void> {
    if (this.#known[position] === 0) throw this.#unknown(position);
    const length = chunkLength(this.index.size, position);
    const content = this.index.isZero(position)
      ? Buffer.alloc(length)
      : Buffer.from(await this.#chunks.get(this.index.digest(position), length));
    signal.throwIfAborted();
    content.set(data, at);
    if (isZero(content)) this.#set(position, zeroDigest);
    else await this.#store(position, content);
  }
}
