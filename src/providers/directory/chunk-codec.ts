import { createHash } from 'node:crypto';
import { constants, createBrotliCompress, createBrotliDecompress } from 'node:zlib';
import { freeMemory } from './free-memory.ts';
import { oneShot, slack } from './one-shot.ts';

export const digestLength = 32;

/** The digest that stands for a chunk of zeroes in an index. */
export const zeroDigest = Buffer.alloc(digestLength);

export type Compression = 'brotli' | 'none';

/**
 * SHA-256, on the spot: 4 MiB take 3 ms. WebCrypto does it in the thread pool, but copies first, and costs a
 * third more; the pool is needed for brotli and for files.
 */
export function digestOf(content: Uint8Array): Buffer {
  return createHash('sha256').update(content).digest();
}

/**
 * Undefined if it would not become smaller. A window of 256 KiB costs a third less time than the largest and
 * hardly any space. The room is taken from the system page by page as it is filled. The memory behind the
 * result belongs to the caller.
 */
export async function compress(content: Uint8Array): Promise<Buffer | undefined> {
  const room = content.length + slack;
  const stream = createBrotliCompress({
    chunkSize: room,
    params: {
      [constants.BROTLI_PARAM_QUALITY]: 1,
      [constants.BROTLI_PARAM_LGWIN]: 18,
      [constants.BROTLI_PARAM_SIZE_HINT]: content.length,
    },
  });
  const compressed = await oneShot(stream, content, room);
  if (compressed.length < content.length) return compressed;
  freeMemory(new Uint8Array(compressed.buffer));
  return undefined;
}

/** Rejects when the content is much longer than `length`, before it takes more memory than that. */
export async function decompress(compressed: Uint8Array, length: number): Promise<Buffer> {
  const room = length + slack;
  return oneShot(createBrotliDecompress({ chunkSize: room }), compressed, room);
}
