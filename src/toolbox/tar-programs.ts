import { Socket } from 'node:net';
import { PassThrough, type Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { BackupError, messageOf } from '../protocol/errors.ts';
import type { Logger } from '../sdk/provider.ts';
import { abortError, sleep } from './abort.ts';
import type { BandwidthLimiter } from './bandwidth.ts';
import { openPipe } from './pipe.ts';
import { ProgramError, type ProgramOptions, type RunningProgram, startProgram } from './run.ts';

/** tar and the filter behind it, running as one. */
export interface TarPrograms {
  readonly stream: Readable;
  readonly tarPid: number;
  /** Bytes that tar wrote; undefined if they go straight to the filter. */
  read(): number | undefined;
  /** Bytes that came out at the end. */
  written(): number;
  /** Resolves when both have ended well; rejects with the first failure, which also ends the other. */
  readonly ended: Promise<void>;
}

export interface TarProgramsOptions {
  startTar(options: Pick<ProgramOptions, 'stdin' | 'stdout' | 'signal'>): Promise<RunningProgram>;
  /** True for an end of tar that is not a failure. */
  isHarmless(error: ProgramError): boolean;
  readonly through?: readonly [program: string, ...args: string[]];
  readonly limiter?: BandwidthLimiter;
  readonly log: Logger;
  /** Aborted by the first failure, and by whoever wants an end. */
  readonly ending: AbortController;
}

interface Connected {
  readonly tar: RunningProgram;
  readonly filter?: RunningProgram;
  /** The bytes that this process itself hands to the filter. */
  readonly copied?: Promise<void>;
}

const streamBuffer = 1024 * 1024;
const filterEndMs = 2000;
const ignore = () => undefined;

/** Connects the programs, by a pipe of the kernel unless the bytes have to be slowed down. */
export async function startTarPrograms(options: TarProgramsOptions): Promise<TarPrograms> {
  const { through, limiter, ending } = options;
  // Node and execa throw away what a program wrote if nobody reads when it ends: this keeps it.
  const stream = new PassThrough({ highWaterMark: streamBuffer });
  stream.on('error', ignore);
  stream.once('close', () => {
    if (!stream.readableEnded) ending.abort(closedEarly(stream.errored));
  });
  const isPiped = through !== undefined && limiter === undefined;
  try {
    const { tar, ...rest } = isPiped
      ? await connectByPipe(options, stream)
      : await connectByCopy(options, stream);
    return {
      stream,
      tarPid: tar.pid,
      read: () => (isPiped ? undefined : bytesOf(tar.stdout)),
      written: () => bytesOf((rest.filter ?? tar).stdout),
      ended: end(options, { tar, ...rest }),
    };
  } catch (error) {
    ending.abort(error);
    throw error;
  }
}

async function connectByPipe(options: TarProgramsOptions, stream: Writable): Promise<Connected> {
  const { signal } = options.ending;
  const pipe = await openPipe();
  try {
    const filter = await startFilter(options, stream, pipe.reader);
    const stdio = { stdin: 'ignore', stdout: pipe.writer } as const;
    return { filter, tar: await options.startTar({ signal, ...stdio }) };
  } finally {
    pipe.close();
  }
}

async function connectByCopy(options: TarProgramsOptions, stream: Writable): Promise<Connected> {
  const { signal } = options.ending;
  const filter = options.through && (await startFilter(options, stream));
  const tar = await options.startTar({ signal, stdin: 'ignore' });
  const copied = copy(tar.stdout, filter?.stdin ?? stream, options);
  copied.catch(ignore);
  return filter === undefined ? { tar } : { tar, filter, copied };
}

async function startFilter(
  { through = [''], log, ending: { signal } }: TarProgramsOptions,
  stream: Writable,
  stdin?: number,
): Promise<RunningProgram> {
  const [program, ...args] = through;
  const input = stdin !== undefined && { stdin };
  const filter = await startProgram(program, args, { signal, log, ...input });
  pipeline(filter.stdout, stream).catch(ignore);
  return filter;
}

async function copy(
  from: Readable,
  to: Writable,
  { limiter, ending: { signal } }: TarProgramsOptions,
): Promise<void> {
  if (limiter === undefined) return pipeline(from, to);
  return pipeline(from, (chunks: AsyncIterable<Buffer>) => limited(chunks, limiter, signal), to);
}

/** Ends early, and quietly, when the signal aborts: the programs are stopped then. */
async function* limited(
  chunks: AsyncIterable<Buffer>,
  limiter: BandwidthLimiter,
  signal: AbortSignal,
): AsyncIterable<Buffer> {
  for await (const chunk of chunks) {
    try {
      await limiter.take(chunk.length, signal);
    } catch {
      return;
    }
    yield chunk;
  }
}

async function end(
  { through, isHarmless, ending }: TarProgramsOptions,
  { tar, filter, copied }: Connected,
): Promise<void> {
  const { signal } = ending;
  const filterEnded = filter?.exited.catch((error: unknown) => ending.abort(error));
  let isBroken = false;
  const copyEnded = copied?.catch((error: unknown) => {
    isBroken = true;
    throw error;
  });
  copyEnded?.catch(ignore);
  try {
    await tar.exited.catch((error: unknown) => {
      if (!(error instanceof ProgramError)) throw error;
      isBroken ||= error.signal === 'SIGPIPE';
      if (!isHarmless(error)) throw error;
    });
    await copyEnded;
  } catch (error) {
    // A filter that takes no more has more to say about it than tar.
    if (isBroken && filter !== undefined) {
      await Promise.race([filterEnded, sleep(filterEndMs, signal)]).catch(ignore);
      ending.abort(unread(through?.[0], error));
    }
    ending.abort(error);
  }
  await filterEnded;
  if (signal.aborted) throw abortError(signal);
}

function bytesOf(stream: Readable): number {
  return stream instanceof Socket ? stream.bytesRead : 0;
}

function unread(filter: string | undefined, cause: unknown): BackupError {
  return new BackupError(`${filter} ended before it had read the whole container`, { cause });
}

function closedEarly(cause: Error | null): BackupError {
  const reason = cause === null ? '' : `: ${messageOf(cause)}`;
  return new BackupError(`the container's tar stream was closed before its end${reason}`, {
    cause,
  });
}
