import { webcrypto } from 'node:crypto';
import { promisify } from 'node:util';
import { brotliCompress, brotliDecompress, constants } from 'node:zlib';

export const digestLength = 32;

/** The digest that stands for a chunk of zeroes in an index. */
export const zeroDigest = Buffer.alloc(digestLength);

export type Compression = 'brotli' | 'none';

const compressBrotli = promisify(brotliCompress);
const decompressBrotli = promisify(brotliDecompress);

/** SHA-256, in the thread pool: 4 MiB take 3 ms, too long for the thread that also talks NBD. */
export async function digestOf(content: Uint8Array): Promise<Buffer> {
  return Buffer.from(await webcrypto.subtle.digest('SHA-256', content));
}

/**
 * Undefined if it would not become smaller. A window of 256 KiB costs a third less time than the largest and
 * hardly any space; output in steps of 1 MiB saves most of the trips between the threads.
 */
export async function compress(content: Uint8Array): Promise<Buffer | undefined> {
  const compressed = await compressBrotli(content, {
    chunkSize: 1024 * 1024,
    params: {
      [constants.BROTLI_PARAM_QUALITY]: 1,
      [constants.BROTLI_PARAM_LGWIN]: 18,
      [constants.BROTLI_PARAM_SIZE_HINT]: content.length,
    },
  });
  return compressed.length < content.length ? compressed : undefined;
}

/** Rejects when the content is longer than `length`, before it takes more memory than that. */
export async function decompress(compressed: Uint8Array, length: number): Promise<Buffer> {
  return decompressBrotli(compressed, {
    // A little more than fits, so that one step suffices.
    chunkSize: length + 64,
    maxOutputLength: length,
  });
}
