import { Socket } from 'node:net';
import { PassThrough, pipeline, type Readable, type Writable } from 'node:stream';
import { pipeline as pipelineEnd } from 'node:stream/promises';
import { BackupError, messageOf } from '../protocol/errors.ts';
import type { Logger } from '../sdk/provider.ts';
import { abortError, sleep } from './abort.ts';
import type { BandwidthLimiter } from './bandwidth.ts';
import { openPipe } from './pipe.ts';
import { ProgramError, type ProgramOptions, type RunningProgram, startProgram } from './run.ts';

/** tar and the filter behind it, as one thing that runs. */
export interface TarPrograms {
  readonly stream: Readable;
  readonly tarPid: number;
  /** Bytes that came out of tar; undefined if they go straight to the filter. */
  read(): number | undefined;
  /** Bytes that came out of the last program. */
  written(): number;
  /** Resolves when both have ended well; rejects with the first failure, which also ended the other. */
  readonly ended: Promise<void>;
}

export interface TarProgramsOptions {
  /** Starts tar. */
  startTar(options: Pick<ProgramOptions, 'stdin' | 'stdout' | 'signal'>): Promise<RunningProgram>;
  /** True for a status that is not a failure. */
  isHarmless(error: ProgramError): boolean;
  readonly through?: readonly [program: string, ...args: string[]];
  readonly limiter?: BandwidthLimiter;
  readonly log: Logger;
  /** Aborted by the first failure, and by whoever wants an end. */
  readonly ending: AbortController;
}

const streamBuffer = 1024 * 1024;
const filterEndMs = 2000;

/** Connects the programs, by a pipe of the kernel unless the bytes have to be slowed down. */
export async function startTarPrograms(options: TarProgramsOptions): Promise<TarPrograms> {
  const { through, limiter, log, ending } = options;
  const { signal } = ending;
  // Node and execa throw away what a program wrote if nobody reads when it ends: this keeps it.
  const stream = new PassThrough({ highWaterMark: streamBuffer });
  stream.on('error', () => undefined);
  stream.once('close', () => {
    if (!stream.readableEnded) ending.abort(closedEarly(stream.errored));
  });
  const out = async (from: Readable, to: Writable) => {
    if (limiter === undefined) await pipelineEnd(from, to);
    else await pipelineEnd(from, (chunks) => limited(chunks, limiter, signal), to);
  };

  if (through === undefined) {
    const tar = await options.startTar({ signal, stdin: 'ignore' });
    out(tar.stdout, stream).catch(() => undefined);
    return programs(tar);
  }
  const [program, ...args] = through;
  const pipe = limiter === undefined ? await openPipe() : undefined;
  let filter: RunningProgram | undefined;
  try {
    const input = pipe && { stdin: pipe.reader.fd };
    filter = await startProgram(program, args, { signal, log, ...input });
    pipeline(filter.stdout, stream, () => undefined);
    const output = pipe && { stdout: pipe.writer.fd };
    const tar = await options.startTar({ signal, stdin: 'ignore', ...output });
    const copied = pipe === undefined ? out(tar.stdout, filter.stdin) : Promise.resolve();
    return programs(tar, { ...filter, name: program, copied });
  } catch (error) {
    await filter?.stop();
    throw error;
  } finally {
    await pipe?.close();
  }

  function programs(
    tar: RunningProgram,
    filter?: RunningProgram & { name: string; copied: Promise<void> },
  ): TarPrograms {
    const last = filter ?? tar;
    return {
      stream,
      tarPid: tar.pid,
      read: () => (pipe === undefined ? bytesOf(tar.stdout) : undefined),
      written: () => bytesOf(last.stdout),
      ended: end(tar, filter),
    };
  }

  async function end(
    tar: RunningProgram,
    filter?: RunningProgram & { name: string; copied: Promise<void> },
  ): Promise<void> {
    const tarEnded = tar.exited.catch((error: unknown) => {
      if (!(error instanceof ProgramError)) throw error;
      if (!options.isHarmless(error)) throw error;
    });
    const filterEnded = filter?.exited.catch((error: unknown) => {
      ending.abort(error);
      throw error;
    });
    const copied = filter?.copied.catch((error: unknown) => {
      throw unread(filter.name, error);
    });
    copied?.catch(() => undefined);
    filterEnded?.catch(() => undefined);
    try {
      await tarEnded;
      await filterEnded;
      await copied;
    } catch (error) {
      // A broken pipe is the filter's doing, and its own words say more.
      const isBroken = error instanceof ProgramError && error.signal === 'SIGPIPE';
      if (isBroken && filter !== undefined) {
        await Promise.race([filterEnded, sleep(filterEndMs, signal)]).catch(() => undefined);
      }
      ending.abort(isBroken && filter !== undefined ? unread(filter.name, error) : error);
    }
    await Promise.allSettled([tarEnded, filterEnded]);
    if (signal.aborted) throw abortError(signal);
  }
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

function bytesOf(stream: Readable): number {
  return stream instanceof Socket ? stream.bytesRead : 0;
}

function unread(filter: string, cause: unknown): BackupError {
  return new BackupError(`${filter} ended before it had read the whole container`, { cause });
}

function closedEarly(cause: Error | null): BackupError {
  const reason = cause === null ? '' : `: ${messageOf(cause)}`;
  return new BackupError(`the container's tar stream was closed before its end${reason}`, {
    cause,
  });
}
