import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { BackupError, messageOf } from '../protocol/errors.ts';
import { abortError } from './abort.ts';
import { startProgram } from './run.ts';

export interface TarInputOptions {
  readonly signal: AbortSignal;
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
  const { signal } = options;
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
    if (compression === undefined) yield* readPlain(file, signal);
    else yield* readThrough(compression.program, path, signal);
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

async function* readThrough(
  program: string,
  path: string,
  signal: AbortSignal,
): AsyncGenerator<Buffer> {
  const running = await startProgram(program, ['-dc', '--', path], { signal });
  running.stdin.end();
  try {
    for await (const chunk of running.stdout as AsyncIterable<Buffer>) yield chunk;
    await running.exited;
  } catch (error) {
    if (signal.aborted) throw abortError(signal);
    const text = `the archive ${path} cannot be restored: ${messageOf(error)}`;
    throw new BackupError(text, { cause: error });
  } finally {
    await running.stop();
  }
}
