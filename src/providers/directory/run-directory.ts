import { randomUUID } from 'node:crypto';
import { lstat, readFile, rename, rm, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import { BackupError } from '../../protocol/errors.ts';
import { acquireLock, type Lock } from '../../toolbox/lock.ts';
import {
  codeOf,
  ifMissing,
  makeDirectory,
  readBounded,
  syncDirectory,
  syncFileSystem,
  writeAtomically,
} from './files.ts';
import { type Layout, member, parseArchiveName, suffix } from './layout.ts';

const runFile = z.object({ bootId: z.string() });
const maxRunFile = 4096;
const discardMs = 3000;

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
 * The directory of an archive while it is written. It is locked before it gets the name by which others find
 * it, so that a run without a lock is a dead one.
 */
export class RunDirectory {
  readonly #layout: Layout;
  readonly #name: string;
  readonly #lock: Lock;
  #committed = false;
  #discarded = false;

  constructor(layout: Layout, name: string, lock: Lock) {
    this.#layout = layout;
    this.#name = name;
    this.#lock = lock;
  }

  /** Takes the name, or says who has it. */
  static async reserve(layout: Layout, name: string): Promise<RunDirectory> {
    const target = layout.archive(name);
    const vmid = parseArchiveName(name)?.vmid ?? 0;
    const starting = join(layout.guest(vmid), `.${randomUUID()}${suffix.starting}`);
    await makeDirectory(layout.guest(vmid));
    await makeDirectory(starting);
    let lock: Lock | undefined;
    try {
      lock = await acquireLock(join(starting, member.runLock), 'exclusive', { wait: false });
      if (lock === undefined) throw new Error(`${starting} is locked by somebody else`);
      await writeAtomically(join(starting, member.run), JSON.stringify({ bootId: await bootId() }));
      await rename(starting, `${target}${suffix.partial}`);
      if ((await lstat(target).catch(ifMissing)) !== undefined) {
        await rm(`${target}${suffix.partial}`, { recursive: true });
        throw taken(name);
      }
      // After a crash the directory tells that there may be chunks without content.
      await syncDirectory(layout.guest(vmid));
      return new RunDirectory(layout, name, lock);
    } catch (error) {
      await rm(starting, { recursive: true, force: true });
      await lock?.release();
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

  /** Makes all that was written durable, then gives the archive its name; there is no way back. */
  async commit(): Promise<void> {
    const target = this.#layout.archive(this.#name);
    await syncFileSystem(this.#layout.path);
    await rename(`${target}${suffix.partial}`, target);
    this.#committed = true;
    await syncDirectory(join(target, '..'));
    for (const file of [member.run, member.runLock]) {
      await unlink(join(target, file)).catch(ifMissing);
    }
    await this.#lock.release();
  }

  /**
   * Leaves nothing, unless committed. Idempotent. Chunks that were written may be used by the next run, which
   * trusts them once this directory is gone; where syncing takes too long for a job that was told to stop,
   * the directory stays for the collector.
   */
  async discard(): Promise<void> {
    if (this.#committed || this.#discarded) return;
    this.#discarded = true;
    const directory = this.path('');
    try {
      const synced = await within(discardMs, syncFileSystem(this.#layout.path));
      if (synced) await rm(directory, { recursive: true, force: true });
    } finally {
      await this.#lock.release();
    }
  }
}

/** False if the work takes longer. */
async function within(ms: number, work: Promise<void>): Promise<boolean> {
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
