import { BackupError } from '../../protocol/errors.ts';
import type { Logger } from '../../sdk/provider.ts';
import { acquireLock, type Lock } from '../../toolbox/lock.ts';
import type { Compression } from './chunk-codec.ts';
import { ChunkStore } from './chunk-store.ts';
import { makeDirectory, type Sync, storeError } from './files.ts';
import { KnownStore } from './known-store.ts';
import { type Layout, layoutOf } from './layout.ts';
import { checkStore, initialiseStore, type StoreUser } from './store-file.ts';

/** How long a backup waits for a sweep, which takes minutes in a store of millions of chunks. */
const sweepWaitMs = 4 * 3600 * 1000;
/** What is done meanwhile takes a moment. */
const protectionWaitMs = 30_000;
/** Somebody sits before a restore. */
export const restoreWaitMs = 5 * 60 * 1000;

/** A path, what lies there, and who may use it now. Holds nothing open: the file system may come and go. */
export class Store {
  readonly layout: Layout;
  readonly chunks: ChunkStore;
  readonly compression: Compression;
  readonly log: Logger;
  readonly sync: Sync;
  readonly #user: StoreUser;
  readonly #known: KnownStore;
  #saidInUse = false;
  /** For sockets and mount points, on a tmpfs. */
  readonly runDir: string;
  /** Aborts when the host ends. */
  readonly signal: AbortSignal;

  constructor(options: {
    path: string;
    compression: Compression;
    user: StoreUser;
    sync: Sync;
    log: Logger;
    runDir: string;
    cacheDir: string;
    signal: AbortSignal;
  }) {
    this.layout = layoutOf(options.path);
    this.compression = options.compression;
    this.chunks = new ChunkStore(this.layout, options.compression);
    this.sync = options.sync;
    this.log = options.log;
    this.#user = options.user;
    this.#known = new KnownStore(options.cacheDir, options.path);
    this.runDir = options.runDir;
    this.signal = options.signal;
  }

  /** To be called before each use. True if there is a store; a directory with none may still hold archives. */
  async check(): Promise<boolean> {
    const found = await checkStore(this.layout, this.#user);
    await (found ? this.#known.note() : this.#known.assertNew());
    return found;
  }

  /** Like `check`, and makes the directory a store. */
  async open(): Promise<void> {
    if (await this.check()) return;
    try {
      await makeDirectory(this.layout.bridge);
      const lock = await this.#acquire('exclusive', true);
      try {
        if (!(await this.check())) await initialiseStore(this.layout, this.#user);
      } finally {
        await lock?.release();
      }
    } catch (error) {
      throw storeError(this.layout.path, 'cannot make a store', error);
    }
  }

  /** For writers and restores: no chunk goes away meanwhile. */
  async share(waitMs = sweepWaitMs): Promise<Lock> {
    const lock = await this.#acquire('shared', false);
    if (lock !== undefined) return lock;
    this.log.info(`waiting for a sweep of ${this.layout.path} to end`);
    const later = await this.#acquire('shared', waitMs);
    if (later !== undefined) return later;
    throw new BackupError(`${this.layout.lock} is still locked: does a sweep hang on some node?`);
  }

  /** For the sweep: nobody writes or restores. Undefined if somebody does, which is said once. */
  async claim(): Promise<Lock | undefined> {
    const lock = await this.#acquire('exclusive', false);
    if (lock === undefined && !this.#saidInUse) {
      this.log.info(
        'backups or restores are running: what removed archives and dead backups left is freed after them',
      );
    }
    this.#saidInUse = lock === undefined;
    return lock;
  }

  /** Runs what must not happen while another process protects an archive, or removes one. */
  async guardProtection<T>(work: () => Promise<T>): Promise<T> {
    if (!(await this.check())) return work();
    const { protectionLock } = this.layout;
    const lock = await acquireLock(protectionLock, 'exclusive', { wait: protectionWaitMs });
    if (lock === undefined) {
      throw new BackupError(`${protectionLock} is still locked: does a removal hang on some node?`);
    }
    try {
      return await work();
    } finally {
      await lock.release();
    }
  }

  /** The end of the host ends the wait, but not the lock: what it protects has to be ended first. */
  #acquire(kind: 'shared' | 'exclusive', wait: boolean | number): Promise<Lock | undefined> {
    return acquireLock(this.layout.lock, kind, { wait, signal: this.signal });
  }
}
