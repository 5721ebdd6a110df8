import { digestLength, zeroDigest } from './chunk-codec.ts';
import { chunkSize } from './layout.ts';

/** How many chunks a disk of `size` bytes has; the last one may be shorter. */
export const chunkCount = (size: number): number => Math.ceil(size / chunkSize);

/** Bytes of the chunk at `position`. */
export function chunkLength(size: number, position: number): number {
  return Math.min(chunkSize, size - position * chunkSize);
}

/**
 * The chunks of a disk in order: 32 bytes each, the SHA-256 of the content, or zeroes for a chunk of zeroes.
 * The file has just these bytes, so that a shell can read it.
 */
export class DiskIndex {
  readonly size: number;
  readonly bytes: Buffer;

  constructor(size: number, bytes: Buffer = Buffer.alloc(chunkCount(size) * digestLength)) {
    if (bytes.length !== chunkCount(size) * digestLength) {
      throw new RangeError(`an index of ${bytes.length} bytes is not one of ${size} bytes of disk`);
    }
    this.size = size;
    this.bytes = bytes;
  }

  get count(): number {
    return this.bytes.length / digestLength;
  }

  digest(position: number): Buffer {
    return this.bytes.subarray(position * digestLength, (position + 1) * digestLength);
  }

  isZero(position: number): boolean {
    return this.digest(position).equals(zeroDigest);
  }

  set(position: number, digest: Uint8Array): void {
    this.bytes.set(digest, position * digestLength);
  }
}
