import { setMaxListeners } from 'node:events';
import type { Extent, VolumeSource } from '../sdk/provider.ts';
import { abortError } from './abort.ts';
import type { BandwidthLimiter } from './bandwidth.ts';
import { type Block, cutBlocks } from './extents.ts';
import type { Progress } from './progress.ts';
import { isZero } from './zero.ts';

/**
 * Where a volume goes. Calls come in any order and up to `concurrency` at a time, each within one block.
 * When one resolves, the store has the bytes and the source may forget them.
 */
export interface VolumeSink {
  /** The buffer is the sink's until the promise settles; then it takes another block. */
  write(offset: number, data: Buffer, signal: AbortSignal): Promise<void>;
  /** The range reads as zeroes. */
  zero(offset: number, length: number, signal: AbortSignal): Promise<void>;
}

export interface CopyOptions {
  /** Up to 32 MiB; block i is the disk's bytes from i * blockSize on. */
  readonly blockSize: number;
  /** Blocks in flight, and so the bound of memory. */
  readonly concurrency: number;
  readonly limiter?: BandwidthLimiter;
  readonly progress?: Progress;
  readonly signal: AbortSignal;
}

/** Bytes. */
export interface CopyStats {
  readonly size: number;
  /** In extents to back up; with a bitmap, what is dirty. */
  readonly dirty: number;
  readonly read: number;
  /** Known to be zero, or found so. */
  readonly zero: number;
  /** Given to `write`. */
  readonly written: number;
}

/** Blocks of zeroes that are discarded in one go. */
const zeroBlocks = 256;
/** How long work that does not listen to its signal is waited for, so that it does not outlive the copy. */
const cancelMs = 500;
const failureMs = 5000;

/**
 * Copies what the source has to back up, several blocks at a time, and discards each block that the sink
 * has accepted. The first error ends the copy and is the one reported.
 */
export async function copyVolume(
  source: VolumeSource,
  sink: VolumeSink,
  options: CopyOptions,
): Promise<CopyStats> {
  const { blockSize, concurrency, limiter, progress, signal } = options;
  if (signal.aborted) throw abortError(signal);
  const stats = { size: source.size, dirty: 0, read: 0, zero: 0, written: 0 };
  const stop = new AbortController();
  // Every request that is under way listens.
  setMaxListeners(0, stop.signal);

  const copyZeroes = async (run: Extent) => {
    for (let at = 0; at < run.length && !stop.signal.aborted; at += blockSize) {
      const length = Math.min(blockSize, run.length - at);
      await sink.zero(run.offset + at, length, stop.signal);
      stats.zero += length;
      progress?.add({ done: length, zero: length });
    }
  };
  // Buffers are used again and again: fresh memory costs the kernel more than the copy itself.
  const free: Buffer[] = [];
  const copyBlock = async (block: Block) => {
    const { offset, length } = block;
    const buffer = free.pop() ?? Buffer.allocUnsafeSlow(blockSize);
    const data = buffer.subarray(0, length);
    const read = await readBlock(source, block, data, limiter, stop.signal);
    const zero = isZero(data);
    if (zero) await sink.zero(offset, length, stop.signal);
    else await sink.write(offset, data, stop.signal);
    free.push(buffer);
    stats.read += read;
    stats[zero ? 'zero' : 'written'] += length;
    progress?.add({ done: length, read, [zero ? 'zero' : 'written']: length });
  };

  const pieces = cutBlocks(source.extents(), blockSize, blockSize * zeroBlocks);
  const work = async () => {
    for (;;) {
      const next: IteratorResult<Block> = await pieces.next();
      if (next.done || stop.signal.aborted) return;
      const piece = next.value;
      stats.dirty += piece.length;
      await (piece.data.length === 0 ? copyZeroes(piece) : copyBlock(piece));
      if (stop.signal.aborted) return;
      await source.discard(piece.offset, piece.length);
    }
  };

  let failure: { error: unknown } | undefined;
  const timers: NodeJS.Timeout[] = [];
  let giveUp = () => {};
  const gaveUp = new Promise<void>((resolve) => {
    giveUp = resolve;
  });
  const fail = (error: unknown, graceMs: number) => {
    failure ??= { error };
    timers.push(setTimeout(giveUp, graceMs));
    stop.abort(failure.error);
  };
  const cancel = () => fail(abortError(signal), cancelMs);
  signal.addEventListener('abort', cancel, { once: true });
  try {
    const workers = Array.from({ length: concurrency }, () =>
      work().catch((error: unknown) => fail(error, failureMs)),
    );
    await Promise.race([Promise.all(workers), gaveUp]);
  } finally {
    signal.removeEventListener('abort', cancel);
    timers.forEach(clearTimeout);
    // Not awaited: it waits for a source that may hang.
    pieces.return(undefined).catch(() => undefined);
  }
  if (failure !== undefined) throw failure.error;
  return stats;
}

/** Fills a block from the source, in small steps where a limit makes it slow; returns how much was read. */
async function readBlock(
  source: VolumeSource,
  { offset, data: parts }: Block,
  block: Buffer,
  limiter: BandwidthLimiter | undefined,
  signal: AbortSignal,
): Promise<number> {
  let filled = 0;
  let read = 0;
  for (const part of parts) {
    const start = part.offset - offset;
    block.fill(0, filled, start);
    filled = start + part.length;
    const most = limiter === undefined ? part.length : Math.min(limiter.maxRequest, part.length);
    for (let at = start; at < filled; at += most) {
      const target = block.subarray(at, Math.min(at + most, filled));
      await limiter?.take(target.length, signal);
      const data = await source.read(offset + at, target.length, signal, target);
      if (data !== target) data.copy(target);
    }
    read += part.length;
  }
  block.fill(0, filled);
  return read;
}
