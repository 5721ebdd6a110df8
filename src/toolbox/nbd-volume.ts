import { connectNbd, type NbdConnection } from '../nbd/client.ts';
import { BackupError, isBackupError } from '../protocol/errors.ts';
import type { DataExtent, DeviceName, Extent, VolumeSource } from '../sdk/provider.ts';
import { abortError } from './abort.ts';
import { allocatedExtents, allocation, dirtyExtents } from './block-status.ts';
import { formatBytes } from './bytes.ts';
import { DiscardQueue } from './discards.ts';
import { mergeExtents } from './extents.ts';
import { explained, isAnswer } from './nbd-errors.ts';

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
    const [first] = this.#connections;
    if (this.#bitmap === undefined || first === undefined) {
      yield* mergeExtents(this.#allocated({ offset: 0, length: this.size }));
      return;
    }
    // With `reuse` no connection knows of zeroes: what is dirty is data.
    const dirty = mergeExtents(this.#dirty(first, this.#bitmap));
    yield* mergeExtents(this.#allocatedOf(dirty));
  }

  async read(
    offset: number,
    length: number,
    signal?: AbortSignal,
    into = Buffer.allocUnsafeSlow(length),
  ): Promise<Buffer> {
    const parts: Promise<unknown>[] = [];
    const end = offset + length;
    // At multiples of what the server takes, so that no request touches more of its clusters than it has to.
    for (let at = offset, next = at; at < end; at = next) {
      next = Math.min((Math.floor(at / this.#maxRead) + 1) * this.#maxRead, end);
      parts.push(this.#read(at, into.subarray(at - offset, next - offset), signal));
    }
    await Promise.all(parts);
    return into;
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

  async #read(offset: number, into: Buffer, signal?: AbortSignal): Promise<void> {
    const connection = this.#idlest();
    this.#busy.set(connection, (this.#busy.get(connection) ?? 0) + 1);
    try {
      // The client asks for one piece: without DF an I/O error would cost the connection [E5].
      await connection.read(offset, into.length, { into, ...(signal && { signal }) });
    } catch (error) {
      if (signal?.aborted) throw abortError(signal);
      const text = `cannot read ${formatBytes(into.length)} at ${offset} of ${this.device}`;
      throw this.#explained(error, text);
    } finally {
      this.#busy.set(connection, (this.#busy.get(connection) ?? 1) - 1);
    }
  }

  async *#allocatedOf(extents: AsyncIterable<Extent>): AsyncGenerator<DataExtent> {
    for await (const extent of extents) yield* this.#allocated(extent);
  }

  async *#allocated(extent: Extent): AsyncGenerator<DataExtent> {
    const connection = this.#connections.find(({ contexts }) => contexts.has(allocation));
    const end = extent.offset + extent.length;
    let done = extent.offset;
    try {
      if (connection !== undefined) {
        for await (const part of allocatedExtents(connection, extent)) {
          yield part;
          done = part.offset + part.length;
        }
      }
    } catch (error) {
      // Knowing less only costs time; if it cannot be read either, then that says why.
      if (!(isBackupError(error) && isAnswer(error.cause))) throw this.#explained(error);
    }
    if (done < end) yield { offset: done, length: end - done, zero: false };
  }

  async *#dirty(connection: NbdConnection, context: string): AsyncGenerator<DataExtent> {
    try {
      yield* dirtyExtents(connection, context, { offset: 0, length: this.size });
    } catch (error) {
      throw this.#explained(error);
    }
  }

  #idlest(): NbdConnection {
    const busy = (connection: NbdConnection) => this.#busy.get(connection) ?? 0;
    const [first, ...others] = this.#connections;
    if (first === undefined) throw new Error('an NBD volume without a connection');
    return others.reduce((best, each) => (busy(each) < busy(best) ? each : best), first);
  }

  #explained(error: unknown, text = `lost the map of ${this.device}`): BackupError {
    return this.#signal.aborted ? abortError(this.#signal) : explained(error, text);
  }
}
