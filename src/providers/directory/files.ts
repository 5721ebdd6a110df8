import { randomUUID } from 'node:crypto';
import { constants, type Stats } from 'node:fs';
import { type FileHandle, mkdir, open, rename, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { BackupError, isBackupError, messageOf } from '../../protocol/errors.ts';
import { run } from '../../toolbox/run.ts';

/** The error code of a failed system call, if it was one. */
export function codeOf(error: unknown): string | undefined {
  if (!(error instanceof Error) || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

/** For `.catch`: undefined where there is no such file, the error otherwise. */
export function ifMissing(error: unknown): undefined {
  if (codeOf(error) === 'ENOENT') return undefined;
  throw error;
}

/** Runs `work` on an opened file and closes it. */
export async function withFile<T>(
  path: string,
  flags: number | string,
  work: (file: FileHandle) => Promise<T>,
): Promise<T> {
  const file = await open(path, flags, 0o600);
  try {
    return await work(file);
  } finally {
    await file.close();
  }
}

/** To open what the store may hold in any state: no links are followed, and a FIFO holds nobody up. */
export const untrustedFlags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/** Rejects what is no regular file, or has more than `limit` bytes. */
export function assertRegular(path: string, stats: Stats, limit = Number.POSITIVE_INFINITY): void {
  if (!stats.isFile()) throw new BackupError(`${path} is not a regular file`);
  if (stats.size > limit) {
    throw new BackupError(`${path} has ${stats.size} bytes, more than the ${limit} it may have`);
  }
}

/** Runs `work` on a regular file that the store may hold in any state. */
export async function withRegularFile<T>(
  path: string,
  work: (file: FileHandle) => Promise<T>,
  limit?: number,
): Promise<T> {
  return withFile(path, untrustedFlags, async (file) => {
    assertRegular(path, await file.stat(), limit);
    return work(file);
  });
}

/** Reads a whole file that the store may hold in any state: no links, no devices, no more than `limit` bytes. */
export async function readBounded(path: string, limit: number): Promise<Buffer> {
  return withRegularFile(path, (file) => file.readFile(), limit);
}

/** Replaces or creates a file so that a crash leaves the old or the new content. */
export async function writeAtomically(path: string, content: Uint8Array | string): Promise<void> {
  const temporary = `${path}.${randomUUID()}.tmp`;
  try {
    await withFile(temporary, 'wx', async (file) => {
      await file.writeFile(content);
      await file.sync();
    });
    await rename(temporary, path);
  } catch (error) {
    await unlink(temporary).catch(() => {});
    throw error;
  }
  await syncDirectory(dirname(path));
}

/** Makes the names in a directory durable. */
export async function syncDirectory(path: string): Promise<void> {
  await withFile(path, constants.O_RDONLY | constants.O_DIRECTORY, (file) => file.sync());
}

/** Makes everything on the file system of a path durable. */
export type Sync = (path: string) => Promise<void>;

/** Makes everything on the file system of `path` durable, thousands of chunks at once. */
export async function syncFileSystem(path: string): Promise<void> {
  await run('sync', ['-f', path]);
}

/**
 * Creates a directory; no error if it exists. Never its parents: where the store's file system has been
 * unmounted, nothing may be written below its mount point.
 */
export async function makeDirectory(path: string): Promise<void> {
  await mkdir(path, { mode: 0o700 }).catch((error: unknown) => {
    if (codeOf(error) !== 'EEXIST') throw error;
  });
}

/** True if the file system, or a quota on it, is full. */
export function isFull(error: unknown): boolean {
  return codeOf(error) === 'ENOSPC' || codeOf(error) === 'EDQUOT';
}

/** Turns what a file system says into a sentence that tells the administrator what to do. */
export function storeError(path: string, doing: string, error: unknown): Error {
  if (isBackupError(error)) return error;
  if (isFull(error)) {
    return new BackupError(
      `${doing}: the store ${path} is full: remove or prune archives, or make the file system larger`,
      { cause: error },
    );
  }
  if (codeOf(error) === 'EROFS') {
    return new BackupError(`${doing}: the store ${path} is mounted read-only`, { cause: error });
  }
  return new BackupError(`${doing}: ${messageOf(error)}`, { cause: error });
}
