import { lstat, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf } from '../../protocol/errors.ts';
import { acquireLock } from '../../toolbox/lock.ts';
import { digestOf } from './chunk-codec.ts';
import { readChunk } from './chunk-store.ts';
import { chunkFiles, entriesWith } from './directories.ts';
import { ifMissing, makeDirectory, syncFileSystem } from './files.ts';
import { chunkSize, member, suffix } from './layout.ts';
import { markDamaged } from './mark-damaged.ts';
import { forEachParallel } from './parallel.ts';
import { bootId, bootIdOf } from './run-directory.ts';
import type { Store } from './store.ts';
import { sweepIfWanted, wantSweep } from './sweep.ts';

/** A backup needs less than this to get from its first directory to its lock. */
const startingMs = 60_000;
/** Clocks of file systems may be this coarse. */
const coarseMs = 2000;
const width = 4;

async function removeTree(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true });
}

async function modifiedAt(path: string): Promise<number | undefined> {
  return (await lstat(path).catch(ifMissing))?.mtimeMs;
}

/**
 * After a power failure a chunk of the dead run may have its name and size but not its content, and nobody
 * may use it unread. Sets such chunks aside.
 */
async function checkChunksSince(store: Store, since: number): Promise<void> {
  const { layout, log } = store;
  log.info('a node went down during a backup: the chunks written since are checked');
  const damaged = new Set<string>();
  for await (const { directory, names } of chunkFiles(layout)) {
    await forEachParallel(names, width, async (name) => {
      const [, hex] = /^([0-9a-f]{64})(?:\.br)?$/.exec(name) ?? [];
      const path = join(directory, name);
      const stats = await lstat(path).catch(ifMissing);
      if (hex === undefined || stats === undefined || stats.mtimeMs < since - coarseMs) return;
      const chunk = {
        path,
        compressed: name.endsWith('.br'),
        size: Math.min(stats.size, 2 * chunkSize),
      };
      const digest = await readChunk(chunk, chunkSize).then(digestOf, () => undefined);
      if (digest?.toString('hex') === hex) return;
      await makeDirectory(layout.damagedChunks);
      await rename(path, join(layout.damagedChunks, name));
      damaged.add(hex);
    });
  }
  if (damaged.size > 0) log.warn(`${damaged.size} damaged chunks were set aside`);
  await markDamaged(store, damaged);
}

/** Undefined if the run lives. Otherwise removes it once its chunks can be trusted, and returns true. */
async function collectRun(store: Store, entry: string): Promise<boolean> {
  const directory = store.layout.archive(entry);
  const runLock = join(directory, member.runLock);
  const lock = await acquireLock(runLock, 'exclusive', { wait: false }).catch(() => undefined);
  if (lock === undefined) return false;
  try {
    // Committed meanwhile: then the lock is that of the archive.
    if ((await lstat(directory).catch(ifMissing)) === undefined) return false;
    if ((await bootIdOf(directory)) === (await bootId())) await syncFileSystem(store.layout.path);
    else await checkChunksSince(store, (await modifiedAt(join(directory, member.run))) ?? 0);
    await removeTree(directory);
    return true;
  } finally {
    await lock.release();
  }
}

/** Removes what dead runs of any node left, and never what a live one needs. */
export async function collectLeftovers(store: Store): Promise<void> {
  const { layout, log } = store;
  let found = false;
  for await (const entry of entriesWith(layout, suffix.removed)) {
    await removeTree(layout.archive(entry));
    found = true;
  }
  for await (const entry of entriesWith(layout, suffix.starting)) {
    const since = (await modifiedAt(layout.archive(entry))) ?? Date.now();
    if (Date.now() - since > startingMs) await removeTree(layout.archive(entry));
  }
  for await (const entry of entriesWith(layout, suffix.partial)) {
    if (!(await collectRun(store, entry))) continue;
    log.info(`removed what a backup that died left: ${entry.slice(0, -suffix.partial.length)}`);
    found = true;
  }
  if (found) await wantSweep(store);
  await sweepIfWanted(store).catch((error: unknown) => {
    log.warn(`no space was freed: ${messageOf(error)}`);
  });
}
