import { access, constants } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import { PassThrough, type Readable, type Writable } from 'node:stream';
import { finished } from 'node:stream/promises';
import { execa } from 'execa';
import { BackupError } from '../protocol/errors.ts';
import type { Logger } from '../sdk/provider.ts';
import { abortError } from './abort.ts';
import { type LastWords, lastLines } from './lines.ts';
import { missingProgram } from './packages.ts';

export interface ProgramOptions {
  /** Ends the program and all it started. */
  readonly signal?: AbortSignal;
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Gets each line of stderr, for the debug log. */
  readonly log?: Pick<Logger, 'debug'>;
  /** What the kernel sends the program when this process dies, however that comes about. */
  readonly deathSignal?: 'KILL' | 'TERM';
  /** A descriptor in place of the pipe; `stdin` or `stdout` of the result is then closed from the start. */
  readonly stdin?: number | 'ignore';
  readonly stdout?: number;
  /** A descriptor for stderr, and where what is written to it comes out. */
  readonly stderr?: { readonly fd: number; readonly stream: Readable };
  /** What errors call the program, where another one only leads to it. */
  readonly name?: string;
  /** Reads stderr in place of the debug log. */
  readonly readStderr?: (stream: Readable) => LastWords;
}

/** A program that failed; `exitCode` is missing if a signal ended it. */
export class ProgramError extends BackupError {
  readonly exitCode: number | undefined;
  readonly signal: string | undefined;

  constructor(
    message: string,
    exitCode: number | undefined,
    cause: unknown,
    signal: string | undefined = undefined,
  ) {
    super(message, { cause });
    this.name = 'ProgramError';
    this.exitCode = exitCode;
    this.signal = signal;
  }
}

/** A program that runs; its pipes are bounded by whoever reads and writes them. */
export interface RunningProgram {
  readonly pid: number;
  readonly stdin: Writable;
  readonly stdout: Readable;
  /** Resolves when it ended with status 0, else rejects with its last words. */
  readonly exited: Promise<void>;
  /** TERM, then KILL; resolves when it is gone. */
  stop(): Promise<void>;
}

const path = ['/usr/sbin', '/usr/bin', '/sbin', '/bin'];
const killMs = 1000;

/**
 * Starts a program in a session of its own, with pipes on stdin and stdout and next to no environment. It
 * never outlives this process: the kernel sends it `deathSignal`.
 */
export async function startProgram(
  program: string,
  args: readonly string[],
  options: ProgramOptions = {},
): Promise<RunningProgram> {
  const { signal, env, cwd, log, deathSignal = 'KILL', name = program } = options;
  const file = await findProgram(program);
  if (signal?.aborted) throw abortError(signal);
  const child = execa('/usr/bin/setpriv', ['--pdeathsig', deathSignal, '--', file, ...args], {
    env: { PATH: path.join(':'), LANG: 'C.UTF-8', ...env },
    extendEnv: false,
    ...(cwd !== undefined && { cwd }),
    detached: true,
    reject: false,
    buffer: false,
    // Any descriptor will do, though execa's types know the standard ones only.
    stdin: (options.stdin ?? 'pipe') as 0 | 'ignore' | 'pipe',
    stdout: (options.stdout ?? 'pipe') as 1 | 'pipe',
    stderr: (options.stderr?.fd ?? 'pipe') as 2 | 'pipe',
  });
  const stderr = options.stderr?.stream ?? child.stderr ?? new PassThrough().destroy();
  const words =
    options.readStderr?.(stderr) ?? lastLines(stderr, (line) => log?.debug(`${name}: ${line}`));
  const wordsEnded = options.stderr && finished(stderr).catch(() => undefined);
  // A program may end without having read all of its input; its status tells, not the pipe.
  child.stdin?.on('error', () => undefined);

  const kill = (signalName: NodeJS.Signals) => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, signalName);
    } catch {
      // It has ended by itself.
    }
  };
  let timer: NodeJS.Timeout | undefined;
  let ended = false;
  const end = () => {
    // Its pid may be another's by now.
    if (ended) return;
    kill('SIGTERM');
    timer ??= setTimeout(kill, killMs, 'SIGKILL');
  };
  signal?.addEventListener('abort', end, { once: true });

  const exited = child.then(async (result) => {
    ended = true;
    clearTimeout(timer);
    await wordsEnded;
    signal?.removeEventListener('abort', end);
    if (!result.failed) return;
    if (signal?.aborted) throw abortError(signal);
    const status =
      result.signal !== undefined
        ? `was killed by ${result.signal}`
        : result.exitCode !== undefined
          ? `failed with exit status ${result.exitCode}`
          : 'cannot be started';
    const last = words.last();
    const text = `${name} ${status}${last === undefined ? '' : `: ${last}`}`;
    const cause = words.all() === '' ? result : words.all();
    throw new ProgramError(text, result.exitCode, cause, result.signal);
  });
  exited.catch(() => undefined);
  if (child.pid === undefined) {
    await exited;
    throw new BackupError(`${name} cannot be started`);
  }
  return {
    pid: child.pid,
    stdin: child.stdin ?? new PassThrough().destroy(),
    stdout: child.stdout ?? new PassThrough().destroy(),
    exited,
    async stop() {
      end();
      await exited.catch(() => undefined);
    },
  };
}

export interface RunOptions extends ProgramOptions {
  readonly input?: string | Uint8Array;
  /** Bytes of stdout that are kept; more is an error. */
  readonly maxOutput?: number;
}

/** Runs a program to its end and returns what it wrote to stdout. */
export async function run(
  program: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Buffer> {
  const running = await startProgram(program, args, options);
  const maxOutput = options.maxOutput ?? 16 * 1024 * 1024;
  running.stdin.end(options.input);
  const chunks: Buffer[] = [];
  let length = 0;
  running.stdout.on('data', (chunk: Buffer) => {
    length += chunk.length;
    if (length <= maxOutput) chunks.push(chunk);
    else void running.stop();
  });
  try {
    await running.exited;
  } catch (error) {
    if (length <= maxOutput || options.signal?.aborted) throw error;
  }
  if (length > maxOutput) {
    throw new BackupError(`${program} wrote more than ${maxOutput} bytes`);
  }
  return Buffer.concat(chunks);
}

/** Its absolute path; rejects with what to install. */
export async function findProgram(program: string): Promise<string> {
  for (const file of isAbsolute(program) ? [program] : path.map((dir) => join(dir, program))) {
    const found = await access(file, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (found) return file;
  }
  throw missingProgram(program);
}
