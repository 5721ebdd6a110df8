import { constants } from 'node:fs';
import { type FileHandle, open, readFile, readlink } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { BackupError, messageOf } from '../protocol/errors.ts';
import type { DataExtent, DeviceName, VolumeSource } from '../sdk/provider.ts';
import { abortable, abortError } from './abort.ts';
import { formatBytes } from './bytes.ts';
import { DiscardQueue } from './discards.ts';
import { mergeExtents } from './extents.ts';
import { alignedBuffers, bufferBytes, pageSize } from './file-volume-buffers.ts';
import { assertNoneFailed } from './file-volume-nbdinfo.ts';
import { DirtyRegions, type NextRegions } from './file-volume-regions.ts';
import { explained } from './nbd-errors.ts';
import { processStartTime } from './processes.ts';
import { run } from './run.ts';

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

/** Opens a volume that PVE offers as a file or a block device [B7]. `close` before `backup_vm` returns [E10]. */
export async function openFileVolume(options: FileVolumeOptions): Promise<FileVolume> {
  const { device, path, size, signal } = options;
  if (signal.aborted) throw abortError(signal);
  // The kernel would read ahead of buffered reads, into areas that cannot be read [E3].
  const flags = constants.O_RDONLY | constants.O_DIRECT;
  let file: FileHandle | undefined;
  try {
    file = await abortable(open(path, flags), signal);
    const real = await sizeOf(file);
    if (real !== size) {
      throw new BackupError(
        `${device} has ${size} bytes in the backup job, but ${real} in its file;` +
          ' was it resized? Run the backup again',
      );
    }
    return new FileVolume(options, file, await readlink(`/proc/self/fd/${file.fd}`));
  } catch (error) {
    await file?.close();
    throw explained(error, `cannot open the file of ${device}`);
  }
}

async function sizeOf(file: FileHandle): Promise<number> {
  const stats = await file.stat();
  if (!stats.isBlockDevice()) return stats.size;
  const { rdev } = stats;
  const [major, minor] = [(rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xfff00)];
  return 512 * Number(await readFile(`/sys/dev/block/${major}:${minor}/size`, 'latin1'));
}

/** One disk as nbdfuse shows it, or as a block device: mechanisms file-handle and block-device. */
export class FileVolume implements VolumeSource {
  readonly device: DeviceName;
  readonly size: number;
  readonly bitmapMode: VolumeSource['bitmapMode'];
  readonly #options: FileVolumeOptions;
  readonly #file: FileHandle;
  readonly #path: string;
  readonly #regions: DirtyRegions;
  readonly #discards: DiscardQueue;
  #closed: Promise<void> | undefined;

  constructor(options: FileVolumeOptions, file: FileHandle, path: string) {
    this.device = options.device;
    this.size = options.size;
    this.bitmapMode = options.bitmapMode;
    this.#options = options;
    this.#file = file;
    this.#path = path;
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
    const parts: Promise<void>[] = [];
    const end = offset + length;
    for (let at = offset, next = at; at < end; at = next) {
      next = Math.min((Math.floor(at / bufferBytes) + 1) * bufferBytes, end);
      parts.push(this.#readPart(at, into.subarray(at - offset, next - offset), signal));
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
    if ((await processStartTime(pid)) !== startTime) await this.#unmount();
    await this.#file.close();
  }

  /**
   * A killed vzdump leaves nbdfuse and the process that waits for it, which holds the lock of all backups
   * of the node [A6]. Forced, for a read may hang.
   */
  async #unmount(): Promise<void> {
    const directory = dirname(this.#path);
    const table = await readFile('/proc/self/mountinfo', 'utf8');
    const mount = table.split('\n').find((line) => line.split(' ')[4] === directory);
    const isItsOwn = basename(this.#path) === this.device && / - fuse\S* /.test(mount ?? '');
    if (!isItsOwn) return;
    await run('umount', ['--no-canonicalize', '--internal-only', '--force', '--lazy', directory]);
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
          const { bytesRead } = await this.#file.read(buffer, done, length - done, position);
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
