import { randomUUID } from 'node:crypto';
import { type FileHandle, lstat, open, rename, unlink } from 'node:fs/promises';
import { BackupError } from '../../protocol/errors.ts';
import { isZero } from '../../toolbox/zero.ts';
import { type Compression, compress, decompress, digestOf } from './chunk-codec.ts';
import { codeOf, ifMissing, makeDirectory, withFile } from './files.ts';
import { freeMemory } from './free-memory.ts';
import type { Layout } from './layout.ts';

/** A chunk's file as it lies in the store. */
export interface StoredChunk {
  readonly path: string;
  readonly compressed: boolean;
  readonly size: number;
}

/** What became of a chunk that was put. */
export interface PutResult {
  readonly digest: Buffer;
  /** Bytes that the store grew by; 0 if it had the chunk. */
  readonly written: number;
}

/** Chunks by the SHA-256 of their content, whoever wrote them; safe to share between processes and nodes. */
export class ChunkStore {
  readonly #layout: Layout;
  readonly #compression: Compression;
  /** Puts under way, so that equal chunks of one disk are written once. */
  readonly #puts = new Map<string, Promise<number>>();

  constructor(layout: Layout, compression: Compression) {
    this.#layout = layout;
    this.#compression = compression;
  }

  /** Not durable before the file system is synced. */
  async put(content: Uint8Array): Promise<PutResult> {
    const digest = digestOf(content);
    const hex = digest.toString('hex');
    const other = this.#puts.get(hex);
    if (other !== undefined) {
      await other;
      return { digest, written: 0 };
    }
    const put = this.#write(hex, content);
    this.#puts.set(hex, put);
    try {
      return { digest, written: await put };
    } finally {
      this.#puts.delete(hex);
    }
  }

  /** Resolves when no put is under way: a failed copy may leave some behind. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#puts.values());
  }

  /** Looks a chunk of `length` bytes up by its file alone; a length that cannot be right counts as missing. */
  async find(hex: string, length: number): Promise<StoredChunk | undefined> {
    const raw = this.#layout.chunk(hex);
    const names = [
      { path: `${raw}.br`, compressed: true },
      { path: raw, compressed: false },
    ];
    if (this.#compression === 'none') names.reverse();
    for (const name of names) {
      const stats = await lstat(name.path).catch(ifMissing);
      if (stats === undefined || !stats.isFile()) continue;
      const { size } = stats;
      const plausible = name.compressed ? size > 0 && size < length : size === length;
      if (plausible) return { ...name, size };
    }
    return undefined;
  }

  /** The content of a chunk, proved by its digest. */
  async get(digest: Buffer, length: number): Promise<Buffer> {
    const hex = digest.toString('hex');
    const found = await this.find(hex, length);
    if (found === undefined) throw new BackupError(`chunk ${hex} is missing or has a wrong size`);
    const content = await readChunk(found, length).catch((cause: unknown) => {
      throw new BackupError(`chunk ${hex} cannot be read`, { cause });
    });
    if (content.length !== length || !digestOf(content).equals(digest)) {
      throw new BackupError(`chunk ${hex} is damaged`);
    }
    return content;
  }

  async #write(hex: string, content: Uint8Array): Promise<number> {
    if ((await this.find(hex, content.length)) !== undefined) return 0;
    const compressed = this.#compression === 'brotli' ? await compress(content) : undefined;
    const bytes = compressed ?? content;
    let written = 0;
    const path =
      compressed === undefined ? this.#layout.chunk(hex) : `${this.#layout.chunk(hex)}.br`;
    const temporary = `${this.#layout.chunk(hex)}.${randomUUID()}.tmp`;
    try {
      const file = await this.#create(temporary, hex);
      try {
        written = await writeSparse(file, bytes);
      } finally {
        await file.close();
      }
      await rename(temporary, path);
      if (compressed !== undefined) freeMemory(new Uint8Array(compressed.buffer));
    } catch (error) {
      await unlink(temporary).catch(() => {});
      throw error;
    }
    return written;
  }

  async #create(path: string, hex: string): Promise<FileHandle> {
    try {
      return await open(path, 'wx', 0o600);
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') throw error;
      await makeDirectory(this.#layout.chunkDirectory(hex));
      return await open(path, 'wx', 0o600);
    }
  }
}

const hole = 64 * 1024;

/** Writes a file, leaving out its zeroes, in few and large calls; returns how many bytes were written. */
async function writeSparse(file: FileHandle, bytes: Uint8Array): Promise<number> {
  let total = 0;
  let size = 0;
  for (let start = 0; start < bytes.length; ) {
    let end = start;
    while (end < bytes.length && !isZero(bytes.subarray(end, end + hole))) end += hole;
    end = Math.min(end, bytes.length);
    total += end - start;
    if (end > start) size = end;
    while (start < end) {
      start += (await file.write(bytes, start, end - start, start)).bytesWritten;
    }
    while (start < bytes.length && isZero(bytes.subarray(start, start + hole))) start += hole;
  }
  if (size < bytes.length) await file.truncate(bytes.length);
  return total;
}

/** The content of a chunk's file, unproved. */
export async function readChunk(chunk: StoredChunk, length: number): Promise<Buffer> {
  const bytes = Buffer.allocUnsafeSlow(chunk.size);
  await withFile(chunk.path, 'r', async (file) => {
    let done = 0;
    while (done < bytes.length) {
      const { bytesRead } = await file.read(bytes, done, bytes.length - done, done);
      if (bytesRead === 0) throw new BackupError(`${chunk.path} became shorter`);
      done += bytesRead;
    }
  });
  if (!chunk.compressed) return bytes;
  const content = await decompress(bytes, length);
  freeMemory(bytes);
  return content;
}
