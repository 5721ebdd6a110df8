import { randomUUID } from 'node:crypto';
import { lstat, readFile, rename, rm, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import { BackupError, cancelled } from '../../protocol/errors.ts';
import { abortable } from '../../toolbox/abort.ts';
import {
  codeOf,
  ifMissing,
  makeDirectory,
  readBounded,
  type Sync,
  syncDirectory,
  writeAtomically,
} from './files.ts';
import { type Layout, member, parseArchiveName, suffix } from './layout.ts';

const runFile = z.object({ bootId: z.string() });
const maxRunFile = 4096;

/** Differs between nodes and after each start of one. */
export async function bootId(): Promise<string> {
  return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim();
}

/** The boot in which a run began; undefined if it did not get so far as to say. */
export async function bootIdOf(directory: string): Promise<string | undefined> {
  const text = await readBounded(join(directory, member.run), maxRunFile).catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    return runFile.parse(JSON.parse(text.toString())).bootId;
  } catch {
    return undefined;
  }
}

/**
 * The directory of an archive while it is written. Whoever has one shares the lock of the store: to those who
 * hold that alone, each one that they find is a dead run's. No file in it is kept open, since network file
 * systems refuse to rename or remove what is.
 */
export class RunDirectory {
  readonly #layout: Layout;
  readonly #name: string;
  readonly #sync: Sync;
  #committing: Promise<void> | undefined;
  #committed = false;
  #discarded = false;

  constructor(layout: Layout, name: string, sync: Sync) {
    this.#layout = layout;
    this.#name = name;
    this.#sync = sync;
  }

  /** Takes the name, or says who has it. */
  static async reserve(layout: Layout, name: string, sync: Sync): Promise<RunDirectory> {
    const target = layout.archive(name);
    const vmid = parseArchiveName(name)?.vmid ?? 0;
    const starting = join(layout.guest(vmid), `.${randomUUID()}${suffix.starting}`);
    await makeDirectory(layout.guest(vmid));
    await makeDirectory(starting);
    try {
      await writeAtomically(join(starting, member.run), JSON.stringify({ bootId: await bootId() }));
      await rename(starting, `${target}${suffix.partial}`);
      if ((await lstat(target).catch(ifMissing)) !== undefined) {
        await rm(`${target}${suffix.partial}`, { recursive: true });
        throw taken(name);
      }
      // After a crash the directory tells that there may be chunks without content.
      await syncDirectory(layout.guest(vmid));
      return new RunDirectory(layout, name, sync);
    } catch (error) {
      await rm(starting, { recursive: true, force: true });
      throw codeOf(error) === 'ENOTEMPTY' || codeOf(error) === 'EEXIST' ? taken(name) : error;
    }
  }

  get committed(): boolean {
    return this.#committed;
  }

  /** The path of a member, before and after the commit. */
  path(file: string): string {
    const directory = this.#layout.archive(this.#name);
    return join(this.#committed ? directory : `${directory}${suffix.partial}`, file);
  }

  /**
   * Makes all that was written durable, then gives the archive its name; there is no way back. `assertWanted`
   * is asked at the last moment, for syncing may take long.
   */
  async commit(signal: AbortSignal, assertWanted: () => void): Promise<void> {
    await abortable(this.#sync(this.#layout.path), signal);
    signal.throwIfAborted();
    assertWanted();
    if (this.#discarded) throw cancelled();
    // From here to the rename nothing can be discarded.
    this.#committing = this.#takeName();
    await this.#committing;
  }

  /**
   * Leaves nothing, unless committed. Chunks that were written may be used by the next run, which trusts them
   * once this directory is gone; where the `writers` or syncing take longer than `patienceMs` each, the
   * directory stays for the collector.
   */
  async discard(writers: Promise<unknown>, patienceMs: number): Promise<void> {
    // No turn of the event loop between the last look and the decision.
    if (this.#committing !== undefined) await this.#committing.catch(() => undefined);
    if (this.#committed || this.#discarded) return;
    this.#discarded = true;
    const quiet = await within(patienceMs, writers);
    if (!quiet || !(await within(patienceMs, this.#sync(this.#layout.path)))) return;
    await rm(this.path(''), { recursive: true, force: true });
  }

  async #takeName(): Promise<void> {
    const target = this.#layout.archive(this.#name);
    // All is durable by now. Before the rename, so that a kill in between leaves no archive with it.
    await unlink(this.path(member.run));
    await rename(`${target}${suffix.partial}`, target);
    this.#committed = true;
    await syncDirectory(join(target, '..'));
  }
}

/** False if the work takes longer. */
async function within(ms: number, work: Promise<unknown>): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(resolve, ms, false);
  });
  try {
    return await Promise.race([work.then(() => true), late]);
  } finally {
    clearTimeout(timer);
    work.catch(() => undefined);
  }
}

function taken(name: string): BackupError {
  return new BackupError(
    `there is an archive or a running backup ${name} already: two backups of a guest cannot start in one second`,
  );
}
