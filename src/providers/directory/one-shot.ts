import type { BrotliCompress, BrotliDecompress } from 'node:zlib';

/** Bytes beyond what is expected, for what brotli adds to data that does not compress. */
export const slack = 4096;

/**
 * Runs all of `input` through a stream whose `chunkSize` is `room`, and returns the result as it lies in the
 * stream's one buffer, where zlib's own one-shot functions would copy it. The memory behind it belongs to the
 * caller. Rejects once the output has more bytes than the room.
 */
export function oneShot(
  stream: BrotliCompress | BrotliDecompress,
  input: Uint8Array,
  room: number,
): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    let first: Buffer | undefined;
    let length = 0;
    stream.on('data', (piece: Buffer) => {
      first ??= piece;
      length += piece.length;
      if (piece.buffer !== first.buffer) stream.destroy(new RangeError('more output than room'));
    });
    stream.on('error', reject);
    stream.on('end', () => {
      if (first === undefined) resolve(Buffer.alloc(0));
      else if (first.buffer.byteLength !== room) reject(new RangeError('not the room asked for'));
      else resolve(Buffer.from(first.buffer, first.byteOffset, length));
    });
    stream.end(input);
  });
}
