import type { DataExtent, VolumeSource } from '../../../src/sdk/provider.ts';
import type { VolumeSink } from '../../../src/toolbox/copy.ts';

type Traits = Partial<Pick<VolumeSource, 'read' | 'discard' | 'extents'>>;

/** A volume in memory that fails on what QEMU would refuse: reads outside of extents, or after a discard. */
export class MemorySource implements VolumeSource {
  readonly device = 'drive-scsi0';
  readonly bitmapMode = 'new';
  readonly size: number;
  readonly data: Buffer;
  readonly discarded: boolean[];
  readonly #extents: readonly DataExtent[];
  readonly #traits: Traits;

  constructor(data: Buffer, extents: readonly DataExtent[], traits: Traits = {}) {
    this.size = data.length;
    this.data = data;
    this.#extents = extents;
    this.#traits = traits;
    this.discarded = new Array(data.length).fill(false);
  }

  async *extents() {
    yield* this.#traits.extents?.() ?? this.#extents;
  }

  async read(offset: number, length: number, signal?: AbortSignal): Promise<Buffer> {
    if (this.#traits.read !== undefined) return this.#traits.read(offset, length, signal);
    await turn();
    for (let at = offset; at < offset + length; at++) {
      const readable = this.#extents.some((e) => at >= e.offset && at < e.offset + e.length);
      if (!readable || this.discarded[at]) throw new Error(`EINVAL at ${at}`);
    }
    return Buffer.from(this.data.subarray(offset, offset + length));
  }

  async discard(offset: number, length: number): Promise<void> {
    await this.#traits.discard?.(offset, length);
    this.discarded.fill(true, offset, offset + length);
  }
}

/** Keeps what it accepted; undefined where nothing came. */
export class MemorySink implements VolumeSink {
  readonly bytes: (number | undefined)[];
  readonly calls: { offset: number; length: number; zero: boolean }[] = [];
  readonly #before: (offset: number, signal: AbortSignal) => Promise<void>;

  constructor(size: number, before: (offset: number, signal: AbortSignal) => Promise<void> = turn) {
    this.bytes = new Array(size).fill(undefined);
    this.#before = before;
  }

  async write(offset: number, data: Buffer, signal: AbortSignal): Promise<void> {
    this.calls.push({ offset, length: data.length, zero: false });
    await this.#before(offset, signal);
    for (const [i, byte] of data.entries()) this.bytes[offset + i] = byte;
  }

  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    this.calls.push({ offset, length, zero: true });
    await this.#before(offset, signal);
    this.bytes.fill(0, offset, offset + length);
  }
}

/** Lets others go first, a random number of times. */
export async function turn(): Promise<void> {
  for (let i = Math.random() * 3; i > 0; i--) await new Promise(setImmediate);
}
