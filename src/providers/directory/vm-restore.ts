import { BackupError, messageOf } from '../../protocol/errors.ts';
import type { RawImage, VmRestore, VolumeSizes } from '../../sdk/provider.ts';
import { readIndex } from './archive-members.ts';
import type { ArchiveRecord } from './archive-record.ts';
import { ChunkImage } from './chunk-image.ts';
import type { ChunkStore } from './chunk-store.ts';
import { chunkLength, type DiskIndex } from './disk-index.ts';
import type { Layout } from './layout.ts';
import { forEachParallel } from './parallel.ts';

/** Lookups under way at once. */
const width = 16;

/** Rejects if a chunk's file is missing or cannot be whole by its length. */
async function proveReadable(index: DiskIndex, chunks: ChunkStore): Promise<void> {
  await forEachParallel(Array(index.count).keys(), width, async (position) => {
    if (index.isZero(position)) return;
    const hex = index.digest(position).toString('hex');
    const found = await chunks.find(hex, chunkLength(index.size, position));
    if (found === undefined) throw new BackupError(`chunk ${hex} is missing or has a wrong size`);
  });
}

/** The disks of one archive. `release` gives the lock back that keeps the sweep away. */
class ChunkRestore implements VmRestore {
  readonly volumes: VolumeSizes;
  readonly #name: string;
  readonly #indexes: ReadonlyMap<string, DiskIndex>;
  readonly #chunks: ChunkStore;
  readonly #release: () => Promise<void>;
  readonly #images: RawImage[] = [];

  constructor(
    name: string,
    indexes: ReadonlyMap<string, DiskIndex>,
    chunks: ChunkStore,
    release: () => Promise<void>,
  ) {
    this.#name = name;
    this.#indexes = indexes;
    this.#chunks = chunks;
    this.#release = release;
    this.volumes = new Map([...indexes].map(([device, { size }]) => [device, size]));
  }

  async openVolume(device: string): Promise<RawImage> {
    const index = this.#indexes.get(device);
    if (index === undefined) throw new BackupError(`archive ${this.#name} has no device ${device}`);
    const image = new ChunkImage(index, this.#chunks, `archive ${this.#name}, ${device}`);
    this.#images.push(image);
    return image;
  }

  async close(): Promise<void> {
    await Promise.all(this.#images.splice(0).map((image) => image.close()));
    await this.#release();
  }
}

/** Looks every chunk up, since PVE destroys the old disks next [C4]; their content is proved when read. */
export async function openRestore(
  layout: Layout,
  name: string,
  record: ArchiveRecord,
  chunks: ChunkStore,
  release: () => Promise<void>,
): Promise<VmRestore> {
  const indexes = new Map<string, DiskIndex>();
  for (const device of Object.keys(record.volumes)) {
    const index = await readIndex(layout, name, device, record);
    await proveReadable(index, chunks).catch((cause: unknown) => {
      const text = `archive ${name} cannot be restored: ${device}: ${messageOf(cause)}`;
      throw new BackupError(text, { cause });
    });
    indexes.set(device, index);
  }
  return new ChunkRestore(name, indexes, chunks, release);
}
