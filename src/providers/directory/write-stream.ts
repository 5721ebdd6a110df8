import { createHash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { withFile } from './files.ts';

/** Bytes of one write; as many are read meanwhile. */
const writeSize = 1024 * 1024;

async function writeAll(file: FileHandle, parts: Buffer[], position: number): Promise<void> {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const { bytesWritten } = await file.writev(parts, position);
  if (bytesWritten === length) return;
  // A file system that gets full takes a part first, and says so with the next write.
  const rest = Buffer.concat(parts).subarray(bytesWritten);
  for (let at = 0; at < rest.length; ) {
    const written = await file.write(rest, at, rest.length - at, position + bytesWritten + at);
    at += written.bytesWritten;
  }
}

/**
 * Writes a stream into a new file, in one pass and in bounded memory. When it fails, the stream is destroyed
 * and the file closed before it rejects; the file stays.
 */
export async function writeStream(
  stream: Readable,
  path: string,
): Promise<{ size: number; sha256: string }> {
  const hash = createHash('sha256');
  let size = 0;
  try {
    await withFile(path, 'wx', async (file) => {
      let written = Promise.resolve();
      let parts: Buffer[] = [];
      let gathered = 0;
      const flush = async () => {
        const position = size;
        const batch = parts;
        await written;
        written = writeAll(file, batch, position);
        // At once: a stream that has paused would not come to the next write.
        written.catch((error: Error) => stream.destroy(error));
        size += gathered;
        parts = [];
        gathered = 0;
      };
      try {
        for await (const part of stream as AsyncIterable<Buffer>) {
          hash.update(part);
          parts.push(part);
          gathered += part.length;
          if (gathered >= writeSize) await flush();
        }
        if (gathered > 0) await flush();
      } finally {
        await written;
      }
    });
  } finally {
    stream.destroy();
  }
  return { size, sha256: hash.digest('hex') };
}
