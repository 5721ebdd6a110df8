import { constants } from 'node:fs';
import { lstat, readdir, rename, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { BackupError } from '../../protocol/errors.ts';
import { formatBytes } from '../../toolbox/bytes.ts';
import { digestLength } from './chunk-codec.ts';
import { DigestSet } from './digest-set.ts';
import { chunkFiles, indexHolders } from './directories.ts';
import { ifMissing, syncDirectory, withFile } from './files.ts';
import type { Layout } from './layout.ts';
import { forEachParallel } from './parallel.ts';
import type { Store } from './store.ts';

/** Bytes of an index in memory at once; between two pieces the event loop turns. */
const step = 1024 * 1024;
const width = 8;

/** Adds the digests of one index, in pieces. */
async function addIndex(path: string, digests: DigestSet): Promise<void> {
  const piece = Buffer.alloc(step);
  await withFile(path, 'r', async (file) => {
    for (let at = 0; ; ) {
      const { bytesRead } = await file.read(piece, 0, step, at);
      const whole = bytesRead - (bytesRead % digestLength);
      if (whole === 0) return;
      for (let offset = 0; offset < whole; offset += digestLength) digests.add(piece, offset);
      at += whole;
    }
  });
}

/** The digests that any index names, running backups' included. */
async function namedDigests(layout: Layout): Promise<DigestSet> {
  const digests = new DigestSet();
  for await (const entry of indexHolders(layout)) {
    const directory = layout.archive(entry);
    try {
      for (const name of await readdir(directory)) {
        if (name.endsWith('.index')) await addIndex(join(directory, name), digests);
      }
    } catch (error) {
      // An archive may be removed meanwhile, and never comes back.
      if ((await lstat(directory).catch(ifMissing)) !== undefined) throw error;
    }
  }
  return digests;
}

/** Chunks that no index names, and what dead writers left. */
async function* garbage(layout: Layout, named: DigestSet): AsyncGenerator<string> {
  for await (const { directory, names } of chunkFiles(layout)) {
    for (const name of names) {
      const [, hex] = /^([0-9a-f]{64})(?:\.br)?$/.exec(name) ?? [];
      const unnamed =
        hex === undefined ? name.endsWith('.tmp') : !named.has(Buffer.from(hex, 'hex'));
      if (unnamed) yield join(directory, name);
    }
  }
}

/** Notes that there may be chunks that no index names. False on a full store: then again once there is room. */
export async function wantSweep({ layout }: Store): Promise<boolean> {
  const flag = constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW;
  try {
    await writeFile(layout.sweepWanted, '', { flag });
    await syncDirectory(layout.bridge);
    return true;
  } catch {
    return false;
  }
}

/**
 * Deletes the chunks that no index names. Needs the store for itself; while a backup or restore runs anywhere it
 * leaves the work to whoever comes next.
 */
export async function sweep(store: Store): Promise<void> {
  const { layout, log, signal } = store;
  const lock = await store.claim();
  if (lock === undefined) return;
  try {
    // What is noted from here on may be about an index that has been read already.
    await rename(layout.sweepWanted, layout.sweepBegun).catch(ifMissing);
    const named = await namedDigests(layout);
    const freed = { chunks: 0, bytes: 0 };
    await forEachParallel(garbage(layout, named), width, async (path) => {
      signal.throwIfAborted();
      if (!lock.held) throw new BackupError('the lock of the store was lost: the sweep is put off');
      const stats = await lstat(path).catch(ifMissing);
      if (stats === undefined) return;
      await unlink(path).catch(ifMissing);
      freed.chunks++;
      freed.bytes += stats.size;
    });
    await unlink(layout.sweepBegun).catch(ifMissing);
    if (freed.chunks > 0) log.info(`freed ${formatBytes(freed.bytes)} in ${freed.chunks} chunks`);
  } finally {
    await lock.release();
  }
}

/** Does what earlier sweeps had to leave. */
export async function sweepIfWanted(store: Store): Promise<void> {
  for (const flag of [store.layout.sweepWanted, store.layout.sweepBegun]) {
    if ((await lstat(flag).catch(ifMissing)) !== undefined) return sweep(store);
  }
}
