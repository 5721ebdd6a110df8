import { lstat, rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { messageOf } from '../../protocol/errors.ts';
import { digestOf } from './chunk-codec.ts';
import { readChunk } from './chunk-store.ts';
import { chunkFiles, entriesWith } from './directories.ts';
import { ifMissing, makeDirectory } from './files.ts';
import { chunkSize, member, suffix } from './layout.ts';
import { markDamaged } from './mark-damaged.ts';
import { forEachParallel } from './parallel.ts';
import { bootId, bootIdOf } from './run-directory.ts';
import type { Store } from './store.ts';
import { wantSweep } from './sweep.ts';

/** Clocks of file systems may be this coarse. */
const coarseMs = 2000;
const width = 4;

async function entriesOf(store: Store, ending: string): Promise<string[]> {
  const entries: string[] = [];
  for await (const entry of entriesWith(store.layout, ending)) entries.push(entry);
  return entries;
}

/** True if a chunk's file has another content than its name says; rejects where the file system fails. */
async function isDamaged(path: string, hex: string, size: number): Promise<boolean> {
  const chunk = { path, compressed: path.endsWith('.br'), size: Math.min(size, 2 * chunkSize) };
  try {
    return digestOf(await readChunk(chunk, chunkSize)).toString('hex') !== hex;
  } catch (error) {
    // Only a failed system call has one: everything else is about the content.
    if (error instanceof Error && 'syscall' in error) return ifMissing(error) ?? false;
    return true;
  }
}

/**
 * After a power failure a chunk of the dead run may have its name and size but not its content, and nobody
 * may use it unread. Sets such chunks aside; nobody else may use the store meanwhile.
 */
async function checkChunksSince(store: Store, since: number): Promise<void> {
  const { layout, log } = store;
  log.info('a node went down during a backup: the chunks written since are checked');
  const damaged = new Map<string, string>();
  for await (const { directory, names } of chunkFiles(layout)) {
    await forEachParallel(names, width, async (name) => {
      const [, hex] = /^([0-9a-f]{64})(?:\.br)?$/.exec(name) ?? [];
      const path = join(directory, name);
      const stats = await lstat(path).catch(ifMissing);
      if (hex === undefined || !stats?.isFile() || stats.mtimeMs < since - coarseMs) return;
      if (await isDamaged(path, hex, stats.size)) damaged.set(name, hex);
    });
  }
  if (damaged.size === 0) return;
  // First, so that no crash leaves an archive without its chunk and without the mark.
  await markDamaged(store, new Set(damaged.values()));
  await makeDirectory(layout.damagedChunks);
  for (const [name, hex] of damaged) {
    const path = join(layout.chunkDirectory(hex), name);
    await rename(path, join(layout.damagedChunks, name)).catch(ifMissing);
  }
  log.warn(`${damaged.size} damaged chunks were set aside`);
}

/** Removes what a dead run left once its chunks can be trusted. */
async function collectRun(store: Store, directory: string): Promise<void> {
  // The run of a container wrote no chunks.
  if (basename(directory).startsWith('lxc-'))
    return rm(directory, { recursive: true, force: true });
  const run = await lstat(join(directory, member.run)).catch(ifMissing);
  // Without it the run had come to its commit: its chunks were synced.
  if (run !== undefined) {
    if ((await bootIdOf(directory)) === (await bootId())) await store.sync(store.layout.path);
    else await checkChunksSince(store, run.mtimeMs);
  }
  await rm(directory, { recursive: true, force: true });
}

/** Applies `remove` to each; what cannot be removed must not keep the job from its backups. */
async function removeEach(
  store: Store,
  entries: readonly string[],
  remove: (directory: string) => Promise<void>,
  removed: (entry: string) => void,
): Promise<void> {
  for (const entry of entries) {
    const directory = store.layout.archive(entry);
    try {
      if ((await lstat(directory).catch(ifMissing)) === undefined) continue;
      await remove(directory);
      removed(entry);
    } catch (error) {
      store.log.warn(`${directory} cannot be removed: ${messageOf(error)}`);
    }
  }
}

/** Runs `remove` so that no crash in it leaves chunks that nobody looks for. */
async function withSweepWanted(store: Store, remove: () => Promise<void>): Promise<void> {
  const noted = await wantSweep(store);
  await remove();
  if (!noted) await wantSweep(store);
}

/** Deletes the directories of removed archives, whoever uses the store; their chunks are the sweep's. */
export async function deleteHidden(store: Store): Promise<void> {
  const hidden = await entriesOf(store, suffix.removed);
  if (hidden.length === 0) return;
  await withSweepWanted(store, () =>
    removeEach(
      store,
      hidden,
      (directory) => rm(directory, { recursive: true, force: true }),
      (entry) => store.log.debug(`deleted ${entry}`),
    ),
  );
}

/** Runs share the lock of the store: to who has it alone, all are dead. */
async function collectRuns(store: Store): Promise<void> {
  const starting = await entriesOf(store, suffix.starting);
  const partial = await entriesOf(store, suffix.partial);
  if (starting.length + partial.length === 0) return;
  const lock = await store.claim();
  if (lock === undefined) return;
  const say = (entry: string) => store.log.info(`removed what a backup that died left: ${entry}`);
  try {
    await removeEach(store, starting, (directory) => rm(directory, { recursive: true }), say);
    await withSweepWanted(store, () =>
      removeEach(store, partial, (directory) => collectRun(store, directory), say),
    );
  } finally {
    await lock.release();
  }
}

/**
 * Removes what removals and dead runs of any node left, and never what a live one needs. What a backup or restore
 * that runs anywhere keeps from it is left to the next call. Chunks are left to the sweep.
 */
export async function collectLeftovers(store: Store): Promise<void> {
  await deleteHidden(store);
  await collectRuns(store);
}
