import * as fs from 'node:fs';
import { readFile, readlink } from 'node:fs/promises';
import { promisify } from 'node:util';
import { BackupError, messageOf } from '../protocol/errors.ts';
import type { DataExtent, DeviceName, VolumeSource } from '../sdk/provider.ts';
import { abortable, abortError } from './abort.ts';
import { formatBytes } from './bytes.ts';
import { deviceNumbers } from './device-numbers.ts';
import { DiscardQueue } from './discards.ts';
import { mergeExtents } from './extents.ts';
import { alignedBuffers, bufferBytes, pageSize } from './file-volume-buffers.ts';
import { endNbdfuse, type OpenedFile } from './file-volume-mount.ts';
import { assertNoneFailed } from './file-volume-nbdinfo.ts';
import { DirtyRegions, type NextRegions } from './file-volume-regions.ts';
import { explained } from './nbd-errors.ts';
import { processStartTime } from './processes.ts';

export interface FileVolumeOptions {
  readonly device: DeviceName;
  /** What the caller says; the file has to agree. */
  readonly size: number;
  /** A block device, or `/proc/PID/fd/N`, which leads into the owner's mount namespace, too. */
  readonly path: string;
  readonly bitmapMode: VolumeSource['bitmapMode'];
  readonly nextRegions: NextRegions;
  /** Frees fleecing space; only the owner's descriptor and language can. */
  readonly deallocate: (offset: number, length: number) => Promise<void>;
  /** The process that made the file. */
  readonly owner: { readonly pid: number; readonly startTime: number };
  readonly signal: AbortSignal;
  /** Of deallocation: 64 KiB or the fleecing image's cluster, if that is larger [E6]. */
  readonly discardAlignment?: number;
}

const deallocateBytes = 1024 * 1024 * 1024;

/** Not a FileHandle: closing the file of an nbdfuse that has ended fails, and it would close it once more. */
const file = {
  open: promisify(fs.open),
  read: promisify(fs.read),
  stat: promisify(fs.fstat),
  close: (fd: number) => promisify(fs.close)(fd).catch(() => undefined),
};

/** Opens a volume that PVE offers as a file or a block device [B7]. `close` before `backup_vm` returns [E10]. */
export async function openFileVolume(options: FileVolumeOptions): Promise<FileVolume> {
  const { device, path, size, signal } = options;
  if (signal.aborted) throw abortError(signal);
  // The kernel would read ahead of buffered reads, into areas that cannot be read [E3].
  const flags = fs.constants.O_RDONLY | fs.constants.O_DIRECT;
  let fd: number | undefined;
  try {
    fd = await abortable(file.open(path, flags), signal);
    const stats = await file.stat(fd);
    const real = stats.isBlockDevice() ? await deviceSize(stats.rdev) : stats.size;
    if (real !== size) {
      throw new BackupError(
        `${device} has ${size} bytes in the backup job, but ${real} in its file;` +
          ' was it resized? Run the backup again',
      );
    }
    const opened = { fd, path: await readlink(`/proc/self/fd/${fd}`), dev: stats.dev };
    return new FileVolume(options, opened);
  } catch (error) {
    if (fd !== undefined) await file.close(fd);
    if (signal.aborted) throw abortError(signal);
    throw explained(error, `cannot open the file of ${device}`);
  }
}

async function deviceSize(rdev: number): Promise<number> {
  const { major, minor } = deviceNumbers(rdev);
  return 512 * Number(await readFile(`/sys/dev/block/${major}:${minor}/size`, 'latin1'));
}

/** One disk as nbdfuse shows it, or as a block device: mechanisms file-handle and block-device. */
export class FileVolume implements VolumeSource {
  readonly device: DeviceName;
  readonly size: number;
  readonly bitmapMode: VolumeSource['bitmapMode'];
  readonly #options: FileVolumeOptions;
  readonly #opened: OpenedFile;
  readonly #reads = new Set<Promise<void>>();
  readonly #regions: DirtyRegions;
  readonly #discards: DiscardQueue;
  #closed: Promise<void> | undefined;

  constructor(options: FileVolumeOptions, opened: OpenedFile) {
    this.device = options.device;
    this.size = options.size;
    this.bitmapMode = options.bitmapMode;
    this.#options = options;
    this.#opened = opened;
    const whenComplete = () => assertNoneFailed(options.owner.pid, 'nbdinfo');
    this.#regions = new DirtyRegions(options, options.nextRegions, whenComplete);
    this.#discards = new DiscardQueue(options.discardAlignment ?? 64 * 1024);
  }

  /** Zeroes show when they are read: nbdfuse knows no SEEK_HOLE. */
  extents(): AsyncGenerator<DataExtent> {
    return mergeExtents(this.#regions.extents());
  }

  async read(
    offset: number,
    length: number,
    signal: AbortSignal = this.#options.signal,
    into = Buffer.allocUnsafeSlow(length),
  ): Promise<Buffer> {
    if (this.#closed !== undefined) throw new Error(`${this.device} is closed`);
    const parts: Promise<void>[] = [];
    const end = offset + length;
    for (let at = offset, next = at; at < end; at = next) {
      next = Math.min((Math.floor(at / bufferBytes) + 1) * bufferBytes, end);
      const part = this.#readPart(at, into.subarray(at - offset, next - offset), signal);
      this.#reads.add(part);
      part.catch(() => undefined).finally(() => this.#reads.delete(part));
      parts.push(part);
    }
    await abortable(Promise.all(parts), signal);
    return into;
  }

  async discard(offset: number, length: number): Promise<void> {
    for (const extent of this.#discards.add(offset, length)) {
      const end = extent.offset + extent.length;
      for (let at = extent.offset; at < end; at += deallocateBytes) {
        await this.#options.deallocate(at, Math.min(deallocateBytes, end - at));
      }
    }
  }

  /** Idempotent. Waits for reads that are under way. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    const { pid, startTime } = this.#options.owner;
    if ((await processStartTime(pid)) !== startTime) await endNbdfuse(this.device, this.#opened);
    await Promise.allSettled(this.#reads);
    await file.close(this.#opened.fd);
  }

  /** One page-aligned cover of `target`; what a read leaves out is asked for once more. */
  #readPart(offset: number, target: Buffer, signal: AbortSignal): Promise<void> {
    const start = Math.floor(offset / pageSize) * pageSize;
    const skip = offset - start;
    const needed = skip + target.length;
    const length = Math.ceil(needed / pageSize) * pageSize;
    return alignedBuffers.use(signal, async (buffer) => {
      try {
        for (let done = 0; done < needed; ) {
          const position = start + done;
          const { bytesRead } = await file.read(
            this.#opened.fd,
            buffer,
            done,
            length - done,
            position,
          );
          if (bytesRead === 0) throw new BackupError(`${this.device} ends at ${position}`);
          done += bytesRead;
        }
      } catch (error) {
        if (signal.aborted) throw abortError(signal);
        throw this.#explained(error, offset, target.length);
      }
      // After an abort `target` may have another use.
      if (signal.aborted) throw abortError(signal);
      buffer.copy(target, 0, skip, needed);
    });
  }

  #explained(error: unknown, offset: number, length: number): BackupError {
    const text = `cannot read ${formatBytes(length)} at ${offset} of ${this.device}`;
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'ENOTCONN' && code !== 'ECONNABORTED') return explained(error, text);
    const reason = `nbdfuse, which serves it as a file, has ended (${messageOf(error)})`;
    return new BackupError(`${text}: ${reason}; run the backup again`, { cause: error });
  }
}
