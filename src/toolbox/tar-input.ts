import { createHash, type Hash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import type { Writable } from 'node:stream';
import { BackupError, messageOf } from '../protocol/errors.ts';
import { abortError } from './abort.ts';
import { startProgram } from './run.ts';

export interface TarInputOptions {
  readonly signal: AbortSignal;
  /** Of the file as it lies there, in lower-case hexadecimal: what differs is refused at the end. */
  readonly sha256?: string | undefined;
}

interface Compression {
  readonly program: string;
  /** First bytes, in hexadecimal. */
  readonly magic: RegExp;
}

/** As pve-container tells them, by the name alone. */
const compressions = new Map<string, Compression>([
  ['.gz', { program: 'gzip', magic: /^1f8b/ }],
  ['.bz2', { program: 'bzip2', magic: /^425a68/ }],
  ['.xz', { program: 'xz', magic: /^fd377a585a00/ }],
  ['.lzo', { program: 'lzop', magic: /^894c5a4f000d0a1a0a/ }],
  // A frame, or one that is skipped, which parallel writers put first.
  ['.zst', { program: 'zstd', magic: /^(28b52ffd|5.2a4d18)/ }],
]);
const magicBytes = 9;
const chunkSize = 1024 * 1024;

/** The bytes of a tar archive, read from its start to its end and decompressed as its name says. */
export async function* readTar(path: string, options: TarInputOptions): AsyncGenerator<Buffer> {
  const { signal, sha256 } = options;
  if (signal.aborted) throw abortError(signal);
  const [, suffix] = /\.tar(\.[^.]+)?$/.exec(path) ?? [undefined, '.'];
  const compression = compressions.get(suffix ?? '');
  if (suffix !== undefined && compression === undefined) {
    const known = [...compressions.keys()].map((each) => `.tar${each}`).join(', ');
    throw new BackupError(`the archive ${path} is none of .tar, ${known}`);
  }
  // A FIFO must not hold us up.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    if (!(await file.stat()).isFile()) throw new BackupError(`${path} is not a regular file`);
    await checkMagic(file, path, compression);
    const hash = sha256 === undefined ? undefined : createHash('sha256');
    const source = hash === undefined ? readPlain(file, signal) : hashed(file, signal, hash);
    let failure: unknown;
    try {
      yield* compression === undefined
        ? source
        : readThrough(compression.program, path, source, { signal, toEnd: hash !== undefined });
    } catch (error) {
      if (signal.aborted) throw error;
      failure = error;
    }
    // Before what the decompressor says, which only follows from it.
    if (hash !== undefined && hash.digest('hex') !== sha256) {
      const text = `the archive ${path} is damaged: its content is not what was backed up`;
      throw new BackupError(text, { cause: failure });
    }
    if (failure !== undefined) throw failure;
  } finally {
    await file.close();
  }
}

async function checkMagic(file: FileHandle, path: string, expected?: Compression): Promise<void> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(magicBytes), 0, magicBytes, 0);
  if (bytesRead === 0) throw new BackupError(`the archive ${path} cannot be restored: it is empty`);
  const start = buffer.toString('hex', 0, bytesRead);
  const found = [...compressions.values()].find(({ magic }) => magic.test(start));
  if (found?.program === expected?.program) return;
  const is = found === undefined ? 'not compressed so' : `compressed by ${found.program}`;
  throw new BackupError(`the archive ${path} cannot be restored: it is ${is}, unlike its name`);
}

async function* readPlain(file: FileHandle, signal: AbortSignal): AsyncGenerator<Buffer> {
  for (let position = 0; ; ) {
    if (signal.aborted) throw abortError(signal);
    // Each piece has memory of its own, since readers keep parts of it.
    const buffer = Buffer.allocUnsafeSlow(chunkSize);
    const { bytesRead } = await file.read(buffer, 0, chunkSize, position);
    if (bytesRead === 0) return;
    position += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}

async function* hashed(file: FileHandle, signal: AbortSignal, hash: Hash): AsyncGenerator<Buffer> {
  for await (const chunk of readPlain(file, signal)) {
    hash.update(chunk);
    yield chunk;
  }
}

async function* readThrough(
  program: string,
  path: string,
  source: AsyncIterable<Buffer>,
  options: { signal: AbortSignal; toEnd: boolean },
): AsyncGenerator<Buffer> {
  const { signal } = options;
  let { toEnd } = options;
  const running = await startProgram(program, ['-dc'], { signal });
  const fed = feed(source, running.stdin, () => toEnd);
  fed.catch(() => running.stop());
  try {
    for await (const chunk of running.stdout as AsyncIterable<Buffer>) yield chunk;
    await running.exited;
  } catch (error) {
    // What could not be read is the cause.
    await fed;
    if (signal.aborted) throw abortError(signal);
    const text = `the archive ${path} cannot be restored: ${messageOf(error)}`;
    throw new BackupError(text, { cause: error });
  } finally {
    toEnd = false;
    await running.stop();
    await fed.catch(() => undefined);
  }
}

/** With `toEnd` the source is read to its end, though the program may have ended. */
async function feed(
  source: AsyncIterable<Buffer>,
  stdin: Writable,
  toEnd: () => boolean,
): Promise<void> {
  for await (const chunk of source) {
    if (stdin.destroyed && !toEnd()) return;
    if (stdin.destroyed || stdin.write(chunk)) continue;
    await new Promise<void>((resolve) => {
      const goOn = () => {
        stdin.off('drain', goOn);
        stdin.off('close', goOn);
        resolve();
      };
      stdin.once('drain', goOn);
      stdin.once('close', goOn);
    });
  }
  stdin.end();
}
