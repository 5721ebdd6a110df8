import { PassThrough, pipeline } from 'node:stream';
import { BackupError, cancelled } from '../protocol/errors.ts';
import type {
  ContainerProgram,
  ContainerTree,
  ExecOptions,
  Logger,
  TarOptions,
  TarStream,
} from '../sdk/provider.ts';
import { abortError, follow, sleep } from './abort.ts';
import { startTar } from './container-tar.ts';
import { lastLines } from './lines.ts';
import { type Namespaces, openNamespaces, type ProcessIdentity } from './namespaces.ts';
import { findProgram, startProgram } from './run.ts';

export interface ContainerTreeOptions {
  /** The process in whose namespaces the container is mounted [A7, A8]. */
  readonly caller: ProcessIdentity;
  readonly directory: string;
  readonly sources: readonly string[];
  readonly userId: number;
  readonly bandwidthLimit?: number;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** A program that hangs in a dead store cannot even be killed, and PVE waits. */
const endMs = 10_000;

/** Opens a container's file system as its own root sees it. `close` ends what still runs there. */
export async function openContainerTree(
  options: ContainerTreeOptions,
): Promise<ContainerTree & { close(): Promise<void> }> {
  if (options.signal.aborted) throw abortError(options.signal);
  const strange = options.sources.find((source) => !/^\.(?:\/|$)/.test(source));
  if (strange !== undefined) {
    throw new BackupError(`the container's mount point '${strange}' does not begin with ./`);
  }
  return new Tree(options, await openNamespaces(options.caller));
}

class Tree implements ContainerTree {
  readonly directory: string;
  readonly sources: readonly string[];
  readonly userId: number;
  readonly #options: ContainerTreeOptions;
  readonly #namespaces: Namespaces;
  readonly #ending = new AbortController();
  readonly #unfollow: () => void;
  readonly #running = new Set<Promise<unknown>>();
  #closed: Promise<void> | undefined;

  constructor(options: ContainerTreeOptions, namespaces: Namespaces) {
    this.directory = options.directory;
    this.sources = options.sources;
    this.userId = options.userId;
    this.#options = options;
    this.#namespaces = namespaces;
    this.#unfollow = follow(this.#ending, options.signal);
  }

  async tar(options: TarOptions = {}): Promise<TarStream> {
    const { directory, sources, bandwidthLimit, log } = this.#options;
    const source = {
      ...{ directory, sources, log, namespaces: this.#namespaces, signal: this.#ending.signal },
      ...(bandwidthLimit && { bandwidthLimit }),
    };
    const starting = startTar(source, options);
    this.#track(starting.then(({ done }) => done));
    return starting;
  }

  async exec(
    command: readonly [program: string, ...args: string[]],
    options: ExecOptions = {},
  ): Promise<ContainerProgram> {
    const starting = this.#exec(command, options);
    this.#track(starting.then(({ exited }) => exited));
    return starting;
  }

  /** Idempotent. Lets the namespaces go when nothing runs in them any more. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #exec(
    [program, ...args]: readonly [program: string, ...args: string[]],
    { env, signal, onStderr }: ExecOptions,
  ): Promise<ContainerProgram> {
    const { log } = this.#options;
    const file = await findProgram(program);
    const ending = new AbortController();
    const unfollow = follow(ending, this.#ending.signal, signal);
    const [first, ...lead] = this.#namespaces.enter(this.directory);
    const running = await startProgram(first, [...lead, file, ...args], {
      signal: ending.signal,
      name: program,
      ...(env && { env }),
      readStderr: (stream) =>
        lastLines(stream, (line) => {
          log.debug(`${program}: ${line}`);
          onStderr?.(line);
        }),
    }).catch((error: unknown) => {
      unfollow();
      throw error;
    });
    running.exited.catch(() => undefined).finally(unfollow);
    // What the program wrote stays there for a reader who comes after its end.
    const stdout = new PassThrough();
    stdout.on('error', () => undefined);
    pipeline(running.stdout, stdout, () => undefined);
    return { ...running, stdout };
  }

  #track(work: Promise<unknown>): void {
    const settled = work.catch(() => undefined).finally(() => this.#running.delete(settled));
    this.#running.add(settled);
  }

  async #close(): Promise<void> {
    this.#unfollow();
    this.#ending.abort(cancelled('the container tree was closed'));
    const ended = new AbortController();
    await Promise.race([
      Promise.all(this.#running).finally(() => ended.abort()),
      sleep(endMs, ended.signal).catch(() => undefined),
    ]);
    await this.#namespaces.close();
  }
}
