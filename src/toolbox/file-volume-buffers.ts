import { abortError } from './abort.ts';

export const pageSize = 4096;
/** What wants memory with this alignment, of a length known at once. */
export const bufferBytes = 1024 * 1024;
/** Reads wait in two of libuv's four threads at most: the others store what was read. */
const count = 2;

/** The one part of WebAssembly that is needed; Node's types leave it out. */
declare const WebAssembly: {
  Memory: new (size: { initial: number; maximum: number }) => { readonly buffer: ArrayBuffer };
};

/**
 * Page-aligned buffers for O_DIRECT, few and of one size; who finds none waits for its turn. Node allocates
 * without alignment, but a WebAssembly memory is mapped in pages.
 */
class AlignedBuffers {
  readonly #waiting: ((buffer: Buffer) => void)[] = [];
  #free: Buffer[] | undefined;

  /** Lends a buffer while `work` runs; rejects instead if its turn comes after the abort. */
  async use<T>(signal: AbortSignal, work: (buffer: Buffer) => Promise<T>): Promise<T> {
    const buffer = await this.#take();
    try {
      if (signal.aborted) throw abortError(signal);
      return await work(buffer);
    } finally {
      this.#give(buffer);
    }
  }

  async #take(): Promise<Buffer> {
    this.#free ??= allocate();
    const buffer = this.#free.pop();
    return buffer ?? new Promise((resolve) => this.#waiting.push(resolve));
  }

  #give(buffer: Buffer): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free?.push(buffer);
    else next(buffer);
  }
}

function allocate(): Buffer[] {
  const pages = (count * bufferBytes) / 65_536;
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages });
  return Array.from({ length: count }, (_, i) => Buffer.from(buffer, i * bufferBytes, bufferBytes));
}

/** Shared by all volumes that this process reads. */
export const alignedBuffers = new AlignedBuffers();
