import { writeFile } from 'node:fs/promises';
import type { VmBackupInput } from '../../sdk/provider.ts';
import { BandwidthLimiter } from '../../toolbox/bandwidth.ts';
import { formatBytes } from '../../toolbox/bytes.ts';
import { copyVolume } from '../../toolbox/copy.ts';
import { measureExtents } from '../../toolbox/extents.ts';
import { Progress } from '../../toolbox/progress.ts';
import { sha256 } from './archive-members.ts';
import type { ArchiveRecord } from './archive-record.ts';
import type { Base } from './base-archive.ts';
import { ChunkSink } from './chunk-sink.ts';
import type { ChunkStore } from './chunk-store.ts';
import { chunkSize, member } from './layout.ts';
import type { RunDirectory } from './run-directory.ts';

/** Chunks in flight: enough to keep the source, the thread pool and the disk busy; 24 MiB are held. */
const concurrency = 6;

interface Totals {
  /** Bytes to back up, and of all disks. */
  readonly total: number;
  readonly size: number;
}

/** Says what is to be done for each disk. */
async function announce(input: VmBackupInput, bases: ReadonlyMap<string, Base>): Promise<Totals> {
  let total = 0;
  let size = 0;
  for (const [device, source] of input.volumes) {
    const { data, zero } = await measureExtents(source.extents());
    const base = bases.get(device);
    const how = base === undefined ? 'full' : `incremental since ${base.name}`;
    const amount = `${formatBytes(data + zero)} of ${formatBytes(source.size)}`;
    input.log.info(`${device}: ${how}, ${amount} to back up`);
    total += data + zero;
    size += source.size;
  }
  return { total, size };
}

/** Stores all disks, one after the other; returns what archive.json says of them. */
export async function copyVolumes(
  input: VmBackupInput,
  bases: ReadonlyMap<string, Base>,
  chunks: ChunkStore,
  directory: RunDirectory,
): Promise<{ volumes: ArchiveRecord['volumes']; storedBytes: number }> {
  const { log, signal, bandwidthLimit = 0 } = input;
  const { total, size } = await announce(input, bases);
  const progress = new Progress({ total, log });
  const options = {
    blockSize: chunkSize,
    concurrency,
    progress,
    signal,
    ...(bandwidthLimit > 0 && { limiter: new BandwidthLimiter(bandwidthLimit) }),
  };
  const volumes: ArchiveRecord['volumes'] = {};
  const sum = { stored: 0, reused: 0, indexes: 0 };
  for (const [device, source] of input.volumes) {
    const base = bases.get(device)?.index;
    // The disk was resized after the plan: then its bitmap cannot be the one that was asked for [E8].
    const usable = base?.size === source.size ? base : undefined;
    const sink = new ChunkSink(device, source.size, chunks, usable);
    await copyVolume(source, sink, options);
    sink.assertComplete();
    const { bytes } = sink.index;
    await writeFile(directory.path(member.index(device)), bytes, { flag: 'wx' });
    volumes[device] = { size: source.size, index: sha256(bytes) };
    sum.stored += sink.stats.stored;
    sum.reused += sink.stats.reused;
    sum.indexes += bytes.length;
  }
  progress.finish({ size, written: sum.stored });
  if (sum.reused > 0) log.info(`reused ${sum.reused} chunks that the store had already`);
  return { volumes, storedBytes: sum.stored + sum.indexes };
}
