import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { rm, stat, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { BackupError } from '../protocol/errors.ts';
import type { Logger } from '../sdk/provider.ts';
import { abortError, follow } from './abort.ts';
import { startProgram } from './run.ts';
import { DeviceFilter } from './tar-devices.ts';
import { blockSize } from './tar-header.ts';
import { readTar, type TarInputOptions } from './tar-input.ts';
import { type TarMeta, TarReader } from './tar-reader.ts';

export interface WithoutDevicesOptions {
  readonly log: Logger;
  readonly signal: AbortSignal;
  /** As for `checkTar`. */
  readonly sha256?: string | undefined;
}

/** As GNU tar ends an archive: two zero blocks at least, and full records of this size. */
const recordSize = 20 * blockSize;
/** What stays free, or a twentieth of the file system if that is less. */
const reserve = 1024 ** 3;

/**
 * Writes a copy of an archive that `checkTar` accepted, without the device nodes outside ./dev and hard links
 * to device nodes; every byte of the other members stays. The copy is compressed by zstd; `target` must
 * not exist, and is removed on failure.
 */
export async function withoutDevices(
  path: string,
  target: string,
  options: WithoutDevicesOptions,
): Promise<void> {
  const { log, signal, sha256 } = options;
  await checkSpace(path, target);
  const file = createWriteStream(target, { flags: 'wx', mode: 0o600 });
  await once(file, 'open');
  const abort = new AbortController();
  const unfollow = follow(abort, signal);
  let cause: unknown;
  /** The first failure ends the others, whose own errors only follow from it. */
  const step = (work: Promise<void>) =>
    work.catch((error: unknown) => {
      cause ??= error;
      abort.abort();
    });
  const kept = keep(path, { signal: abort.signal, sha256 });
  try {
    if (signal.aborted) throw abortError(signal);
    const zstd = await startProgram('zstd', ['-1', '-q', '-c'], { signal: abort.signal, log });
    await Promise.all([
      step(pipeline(kept, zstd.stdin)),
      step(pipeline(zstd.stdout, file)),
      step(zstd.exited),
    ]);
    if (signal.aborted) throw abortError(signal);
    if (cause !== undefined) throw explained(cause, path, target);
  } catch (error) {
    file.destroy();
    await rm(target, { force: true });
    throw error;
  } finally {
    unfollow();
  }
}

/** The copy is about as large as the archive; what else is in need of the file system must not suffer. */
async function checkSpace(path: string, target: string): Promise<void> {
  const { bavail, blocks, bsize } = await statfs(dirname(target));
  const { size } = await stat(path);
  if (bavail * bsize - Math.min(reserve, (blocks * bsize) / 20) < size) throw noSpace(path, target);
}

/** The bytes of the copy. */
async function* keep(path: string, options: TarInputOptions): AsyncGenerator<Buffer> {
  const filter = new DeviceFilter();
  let kept: Buffer[] = [];
  let [written, isKept] = [0, true];
  const add = (...blocks: readonly Buffer[]) => {
    kept.push(...blocks);
    for (const { length } of blocks) written += length;
  };
  const addMeta = (meta: TarMeta) => add(meta.header.block, meta.body);
  const reader = new TarReader(path, {
    member(member) {
      isKept = !filter.isForbidden(member);
      if (!isKept) return;
      for (const meta of member.metas) addMeta(meta);
      add(member.header.block);
      for (const block of member.more) add(block);
    },
    body(chunk) {
      if (isKept) add(chunk);
    },
    global: addMeta,
  });
  for await (const chunk of readTar(path, options)) {
    reader.push(chunk);
    const ready = kept;
    kept = [];
    // Headers come one by one: few large writes are faster.
    if (ready.length > 0) yield ready.length === 1 && ready[0] ? ready[0] : Buffer.concat(ready);
  }
  reader.end();
  yield Buffer.alloc(2 * blockSize + padding(written + 2 * blockSize));
}

function padding(length: number): number {
  return (recordSize - (length % recordSize)) % recordSize;
}

function explained(error: unknown, path: string, target: string): unknown {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ENOSPC' || code === 'EDQUOT' ? noSpace(path, target, error) : error;
}

function noSpace(path: string, target: string, cause?: unknown): BackupError {
  const text = `no space for a copy of ${path} without device nodes at ${target}; make room there`;
  return new BackupError(text, { cause });
}
