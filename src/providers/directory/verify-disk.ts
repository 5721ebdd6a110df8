import { messageOf } from '../../protocol/errors.ts';
import { DigestSet } from './digest-set.ts';
import { chunkLength, type DiskIndex } from './disk-index.ts';
import { chunkSize } from './layout.ts';
import { markDamaged } from './mark-damaged.ts';
import { forEachParallel } from './parallel.ts';
import type { Store } from './store.ts';
import { type ChunkCheck, checkChunk, setAside, wasSetAside } from './verify-chunk.ts';
import type { VerifyProgress } from './verify-progress.ts';
import { runOf } from './verify-run.ts';

/** Chunks in memory at once, each as it lies in the store and as it was: 32 MiB. */
const width = 4;
/** Faulty chunks that are dealt with at once: for each lot all indexes of the store are read. */
const lot = 1000;
/** Lines for one disk. */
const maxProblems = 100;

interface Fault extends ChunkCheck {
  readonly length: number;
}

/**
 * Tells every archive that names them, then moves them away: after a crash in between there is no archive
 * without its chunk and without the mark.
 */
async function condemn(
  store: Store,
  faults: ReadonlyMap<string, Fault>,
  upid: string,
): Promise<void> {
  const lost = new Set([...faults].flatMap(([hex, { good }]) => (good ? [] : [hex])));
  const visited = new Set<string>();
  await markDamaged(store, lost, { upid, visited });
  let files = 0;
  for (const { damaged, length } of faults.values()) {
    for (const path of damaged) await setAside(store.layout, path, length);
    files += damaged.length;
  }
  // Backups that were committed since.
  await markDamaged(store, lost, { upid, visited });
  if (files > 0) store.log.warn(`${files} damaged chunks were set aside`);
}

/** Reads the chunks of one disk; a line for each that is not what its name says. */
export async function verifyDisk(
  store: Store,
  { device, index }: { device: string; index: DiskIndex },
  progress: VerifyProgress,
  { signal, upid }: { signal: AbortSignal; upid: string },
): Promise<string[]> {
  const { layout } = store;
  const run = runOf(store, signal);
  const problems: string[] = [];
  const faulty = new DigestSet();
  let faults = new Map<string, Fault>();

  const report = async (hex: string, position: number, { damaged }: ChunkCheck) => {
    if (problems.length >= maxProblems) return;
    const isThere = damaged.length > 0;
    const isAside = !isThere && (await wasSetAside(layout, hex));
    const state = isThere ? 'is damaged' : isAside ? 'was damaged and set aside' : 'is missing';
    problems.push(`${device}: chunk ${hex} at byte ${position * chunkSize} ${state}`);
  };
  const settle = async () => {
    const found = faults;
    faults = new Map();
    await condemn(store, found, upid).catch((error: unknown) => {
      // A full or read-only store must not keep the faults secret.
      store.log.warn(`damage cannot be noted in the store: ${messageOf(error)}`);
    });
  };
  await forEachParallel(Array(index.count).keys(), width, async (position) => {
    signal.throwIfAborted();
    const length = chunkLength(index.size, position);
    const digest = index.digest(position);
    const isKnown = () => run.knows(digest) || faulty.has(digest);
    if (index.isZero(position) || isKnown()) return progress.add(length, 0);
    const hex = digest.toString('hex');
    const check = await checkChunk(layout, hex, length);
    progress.add(length, check.read);
    // The same chunk may lie at several places of the disk.
    if (isKnown()) return;
    if (check.good) run.add(digest);
    else faulty.add(digest);
    if (check.damaged.length > 0 || !check.good) faults.set(hex, { ...check, length });
    if (!check.good) await report(hex, position, check);
    if (faults.size >= lot) await settle();
  });
  if (faults.size > 0) await settle();
  const more = faulty.size - problems.length;
  return more > 0 ? [...problems, `${device}: ${more} more chunks are damaged`] : problems;
}
