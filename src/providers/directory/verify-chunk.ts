import { lstat, rename } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { digestOf } from './chunk-codec.ts';
import { readChunk } from './chunk-store.ts';
import { codeOf, ifMissing, makeDirectory } from './files.ts';
import { freeMemory } from './free-memory.ts';
import type { Layout } from './layout.ts';

/** What a chunk's files hold: there may be one of each form. */
export interface ChunkCheck {
  /** True if one of them can be restored from. */
  readonly good: boolean;
  /** Bytes that were read. */
  readonly read: number;
  /** Those with another content than their name says. */
  readonly damaged: readonly string[];
}

const forms = (layout: Layout, hex: string) => [`${layout.chunk(hex)}.br`, layout.chunk(hex)];

/** True if the file holds the chunk, undefined if it is gone; rejects where the store cannot be read now. */
async function isWhole(path: string, hex: string, length: number): Promise<boolean | undefined> {
  const stats = await lstat(path).catch(ifMissing);
  if (stats === undefined) return undefined;
  const compressed = path.endsWith('.br');
  const { size } = stats;
  const plausible = compressed ? size > 0 && size < length : size === length;
  if (!stats.isFile() || !plausible) return false;
  try {
    const content = await readChunk({ path, compressed, size }, length);
    const whole = content.length === length && digestOf(content).toString('hex') === hex;
    freeMemory(new Uint8Array(content.buffer));
    return whole;
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined;
    // The disk has lost it. What other system calls say is not about the content.
    const isAboutStore = error instanceof Error && 'syscall' in error && codeOf(error) !== 'EIO';
    if (isAboutStore) throw error;
    return false;
  }
}

/** Reads a chunk of `length` bytes in every form that the store has. */
export async function checkChunk(layout: Layout, hex: string, length: number): Promise<ChunkCheck> {
  let good = false;
  let read = 0;
  const damaged: string[] = [];
  for (const path of forms(layout, hex)) {
    // Twice: another host may just have set it aside and written it anew.
    let whole = await isWhole(path, hex, length);
    if (whole === false) whole = await isWhole(path, hex, length);
    if (whole === false) damaged.push(path);
    if (!whole) continue;
    good = true;
    read += length;
  }
  return { good, read, damaged };
}

/** Moves a damaged file away, so that the next backup of its content writes it anew. */
export async function setAside(layout: Layout, path: string, length: number): Promise<void> {
  await makeDirectory(layout.damagedChunks);
  const target = join(layout.damagedChunks, basename(path));
  await rename(path, target).catch(ifMissing);
  // Between the look at it and now it may have been written anew.
  const [hex = ''] = basename(path).split('.');
  if (await isWhole(target, hex, length)) await rename(target, path);
}

/** True if a file of the chunk was set aside once. */
export async function wasSetAside(layout: Layout, hex: string): Promise<boolean> {
  const found = forms(layout, hex).map((path) =>
    lstat(join(layout.damagedChunks, basename(path))).catch(ifMissing),
  );
  return (await Promise.all(found)).some((stats) => stats !== undefined);
}
