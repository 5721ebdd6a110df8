import { connectNbd, type NbdConnection } from '../nbd/client.ts';
import { NbdError } from '../nbd/errors.ts';
import { BackupError } from '../protocol/errors.ts';
import type { DataExtent, DeviceName, Extent, VolumeSource } from '../sdk/provider.ts';
import { abortError } from './abort.ts';
import { formatBytes } from './bytes.ts';
import { DiscardQueue } from './discards.ts';
import { intersect, mergeExtents } from './extents.ts';

export interface NbdVolumeOptions {
  readonly device: DeviceName;
  /** What the caller says; the export has to agree. */
  readonly size: number;
  readonly socketPath: string;
  readonly bitmapMode: VolumeSource['bitmapMode'];
  /** Of `new` and `reuse`. */
  readonly bitmapName?: string | null | undefined;
  readonly signal: AbortSignal;
  /** How many are used if the server can do several. */
  readonly connections?: number;
  /** Of TRIM: 64 KiB or the fleecing image's cluster, if that is larger [E6]. */
  readonly discardAlignment?: number;
}

const allocation = 'base:allocation';
const answers = new Set(['EPERM', 'EIO', 'ENOMEM', 'EINVAL', 'ENOSPC', 'EOVERFLOW', 'ENOTSUP']);
const flag = { dirty: 1, zero: 2 } as const;
/** Bounds the answer: QEMU reports at least 64 KiB per extent, mostly far more. */
const statusBytes = 1024 * 1024 * 1024;
const trimBytes = 1024 * 1024 * 1024;

/** Opens a volume of QEMU's snapshot access [E1]. `close` before `backup_vm` returns [E10]. */
export async function openNbdVolume(options: NbdVolumeOptions): Promise<NbdVolume> {
  const { device, size, socketPath, bitmapMode, bitmapName, signal } = options;
  if (signal.aborted) throw abortError(signal);
  const bitmap = bitmapMode === 'none' ? undefined : `qemu:dirty-bitmap:${bitmapName ?? ''}`;
  const open: NbdConnection[] = [];
  const connect = async (contexts: string[]) => {
    const connection = await connectNbd({ socketPath, exportName: device, contexts, signal });
    open.push(connection);
    return connection;
  };
  try {
    const first = await connect([bitmap ?? allocation]);
    if (bitmap !== undefined && !first.contexts.has(bitmap)) {
      throw new BackupError(
        `QEMU does not offer the dirty bitmap '${bitmapName ?? ''}' of ${device};` +
          ' run the backup again, it will then read the whole disk',
      );
    }
    if (first.size !== size) {
      throw new BackupError(
        `${device} has ${size} bytes in the backup job, but ${first.size} in QEMU;` +
          ' was it resized? Run the backup again',
      );
    }
    // Never both contexts on one connection [E4].
    let other = bitmap === undefined || bitmapMode === 'reuse' ? [] : [allocation];
    const wanted = first.info.canMultiConn ? (options.connections ?? 2) : 1;
    while (open.length < wanted || (other.length > 0 && first.info.canMultiConn)) {
      await connect(other);
      other = [];
    }
    return new NbdVolume(options, bitmap, open);
  } catch (error) {
    await Promise.allSettled(open.map((connection) => connection.close()));
    if (signal.aborted) throw abortError(signal);
    throw explained(error, `cannot open ${device} on QEMU's NBD server`);
  }
}

/** One device of QEMU's snapshot access as a source of a backup, mechanism nbd. */
export class NbdVolume implements VolumeSource {
  readonly device: DeviceName;
  readonly size: number;
  readonly bitmapMode: VolumeSource['bitmapMode'];
  readonly #bitmap: string | undefined;
  readonly #connections: readonly NbdConnection[];
  readonly #signal: AbortSignal;
  readonly #discards: DiscardQueue;
  readonly #maxRead: number;
  readonly #busy = new Map<NbdConnection, number>();
  readonly #abort = () => void this.close();
  #canTrim: boolean;
  #closed: Promise<void> | undefined;

  constructor(
    options: NbdVolumeOptions,
    bitmap: string | undefined,
    connections: readonly NbdConnection[],
  ) {
    this.device = options.device;
    this.size = options.size;
    this.bitmapMode = options.bitmapMode;
    this.#bitmap = bitmap;
    this.#connections = connections;
    this.#signal = options.signal;
    this.#discards = new DiscardQueue(options.discardAlignment ?? 64 * 1024);
    this.#maxRead = Math.min(...connections.map(({ info }) => info.blockSize.maximum));
    this.#canTrim = connections.every((connection) => connection.info.canTrim);
    this.#signal.addEventListener('abort', this.#abort, { once: true });
    if (this.#signal.aborted) this.#abort();
  }

  /** By the map alone: a failed first backup comes back as `reuse` with everything dirty [E8]. */
  async *extents(): AsyncGenerator<DataExtent> {
    const whole = { offset: 0, length: this.size };
    if (this.#bitmap === undefined) {
      yield* mergeExtents(this.#allocated(whole));
      return;
    }
    const byMap = this.#status(this.#bitmap, whole);
    const dirty = mergeExtents(keepDirty(byMap));
    yield* this.bitmapMode === 'reuse' ? dirty : mergeExtents(this.#allocatedOf(dirty));
  }

  async read(offset: number, length: number, signal?: AbortSignal): Promise<Buffer> {
    const most = this.#maxRead;
    if (length <= most) return this.#read(offset, length, signal);
    const block = Buffer.allocUnsafe(length);
    const parts: Promise<unknown>[] = [];
    for (let at = 0; at < length; at += most) {
      const part = this.#read(offset + at, Math.min(most, length - at), signal);
      parts.push(part.then((data) => data.copy(block, at)));
    }
    await Promise.all(parts);
    return block;
  }

  async discard(offset: number, length: number): Promise<void> {
    for (const extent of this.#discards.add(offset, length)) {
      const end = extent.offset + extent.length;
      for (let at = extent.offset; at < end && this.#canTrim; at += trimBytes) {
        try {
          await this.#idlest().trim(at, Math.min(trimBytes, end - at));
        } catch (error) {
          // Only fleecing space is lost by a server that will not: no reason to lose the backup.
          if (isAnswer(error)) this.#canTrim = false;
          else throw this.#explained(error, `cannot discard at ${at} of ${this.device}`);
        }
      }
    }
  }

  /** Idempotent. */
  close(): Promise<void> {
    this.#signal.removeEventListener('abort', this.#abort);
    this.#closed ??= Promise.allSettled(
      this.#connections.map((connection) => connection.close()),
    ).then(() => undefined);
    return this.#closed;
  }

  async #read(offset: number, length: number, signal?: AbortSignal): Promise<Buffer> {
    const connection = this.#idlest();
    this.#busy.set(connection, (this.#busy.get(connection) ?? 0) + 1);
    try {
      // The client asks for one piece: without DF an I/O error would cost the connection [E5].
      return await connection.read(offset, length, signal === undefined ? {} : { signal });
    } catch (error) {
      if (signal?.aborted) throw abortError(signal);
      const text = `cannot read ${formatBytes(length)} at ${offset} of ${this.device}`;
      throw this.#explained(error, text);
    } finally {
      this.#busy.set(connection, (this.#busy.get(connection) ?? 1) - 1);
    }
  }

  async *#allocatedOf(extents: AsyncIterable<DataExtent>): AsyncGenerator<DataExtent> {
    for await (const extent of extents) yield* this.#allocated(extent);
  }

  /** Which parts of a readable extent are zero, as far as the server knows. */
  async *#allocated(extent: Extent): AsyncGenerator<DataExtent> {
    let done = extent.offset;
    const end = extent.offset + extent.length;
    if (this.#connections.some((connection) => connection.contexts.has(allocation))) {
      try {
        for await (const { flags, ...part } of this.#status(allocation, extent)) {
          yield { ...part, zero: (flags & flag.zero) !== 0 };
          done = part.offset + part.length;
        }
      } catch (error) {
        // Knowing less only costs time; if it cannot be read either, then that says why.
        if (!(error instanceof BackupError && isAnswer(error.cause))) throw error;
      }
    }
    if (done < end) yield { offset: done, length: end - done, zero: false };
  }

  /** The block status of a range, one bounded answer after the other. */
  async *#status(context: string, range: Extent): AsyncGenerator<Extent & { flags: number }> {
    const connection = this.#connections.find((each) => each.contexts.has(context));
    const end = range.offset + range.length;
    for (let offset = range.offset; connection !== undefined && offset < end; ) {
      const asked = { offset, length: Math.min(statusBytes, end - offset) };
      const text = `cannot ask for the ${context} map of ${this.device}`;
      const answer = await connection
        .blockStatus(context, asked.offset, asked.length)
        .catch((error: unknown) => Promise.reject(this.#explained(error, text)));
      const before = offset;
      for (const { length, flags } of answer) {
        const part = intersect({ offset, length }, asked);
        if (part === undefined) break;
        yield { ...part, flags };
        offset = part.offset + part.length;
      }
      if (offset === before) throw new BackupError(`${text}: QEMU's answer is empty`);
    }
  }

  #idlest(): NbdConnection {
    const busy = (connection: NbdConnection) => this.#busy.get(connection) ?? 0;
    const [first, ...others] = this.#connections;
    if (first === undefined) throw new Error('an NBD volume without a connection');
    return others.reduce((best, each) => (busy(each) < busy(best) ? each : best), first);
  }

  #explained(error: unknown, text: string): BackupError {
    return this.#signal.aborted ? abortError(this.#signal) : explained(error, text);
  }
}

async function* keepDirty(
  status: AsyncIterable<Extent & { flags: number }>,
): AsyncGenerator<DataExtent> {
  for await (const { offset, length, flags } of status) {
    if ((flags & flag.dirty) !== 0) yield { offset, length, zero: false };
  }
}

/** The server said no, and the connection goes on. */
function isAnswer(error: unknown): error is NbdError {
  return error instanceof NbdError && answers.has(error.code);
}

function explained(error: unknown, text: string): BackupError {
  if (error instanceof BackupError) return error;
  const reason = error instanceof Error ? error.message : String(error);
  if (error instanceof NbdError && error.code === 'EINVAL') {
    return new BackupError(
      `${text}: QEMU's snapshot is broken, most likely because the fleecing image is full;` +
        ' free space on the fleecing storage or choose a larger one, then run the backup again',
      { cause: error },
    );
  }
  return new BackupError(`${text}: ${reason}`, { cause: error });
}
