import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Readable } from 'node:stream';
import { BackupError, cancelled } from '../../../src/protocol/errors.ts';
import type { ContainerTree, TarOptions, TarStream } from '../../../src/sdk/provider.ts';

async function ended(child: ChildProcess, name: string): Promise<void> {
  const [status, signal] = await once(child, 'exit');
  if (status !== 0) throw new BackupError(`${name} ended with ${status ?? signal}`);
}

/** A tree in this process's own namespaces: real tar and a real filter, and little else. */
export class ProgramTree implements ContainerTree {
  readonly directory: string;
  readonly sources = ['./'];
  readonly userId = 100_000;
  readonly #command: readonly string[];
  /** Of all that were started. */
  readonly pids: number[] = [];
  /** Resolves when tar and the filter run. */
  readonly started: Promise<void>;
  #start = () => {};

  /** `command` instead of tar. */
  constructor(
    directory: string,
    command: readonly string[] = ['tar', '-cf', '-', '--format=pax', '--sparse'],
  ) {
    this.directory = directory;
    this.#command = command;
    this.started = new Promise((resolve) => {
      this.#start = resolve;
    });
  }

  async tar(options: TarOptions = {}): Promise<TarStream> {
    const [program = '', ...args] = this.#command;
    const excluded = (options.exclude ?? []).map((pattern) => `--exclude=${pattern}`);
    const all = program === 'tar' ? [...args, ...excluded, ...this.sources] : args;
    const tar = spawn(program, all, {
      cwd: this.directory,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const children: ChildProcess[] = [tar];
    let stream: Readable = tar.stdout;
    if (options.through !== undefined) {
      const [filter, ...rest] = options.through;
      const child = spawn(filter, rest, { stdio: [tar.stdout, 'pipe', 'inherit'] });
      tar.stdout.destroy();
      children.push(child);
      stream = child.stdout;
    }
    this.pids.push(...children.flatMap(({ pid }) => pid ?? []));
    this.#start();
    const programs = Promise.all(children.map((child) => ended(child, child.spawnfile)));
    const stop = () => {
      for (const child of children) child.kill('SIGKILL');
    };
    if (options.signal?.aborted) stop();
    options.signal?.addEventListener('abort', stop);
    const done = programs.then(
      () => ({ entries: 7, bytes: 12_345 }),
      (error: unknown) => {
        throw options.signal?.aborted ? cancelled() : error;
      },
    );
    return { stream, done };
  }

  exec(): never {
    throw new Error('not used');
  }

  /** Those that still run. */
  get running(): number[] {
    return this.pids.filter((pid) => {
      try {
        return process.kill(pid, 0);
      } catch {
        return false;
      }
    });
  }
}
