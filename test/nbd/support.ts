import { onTestFinished } from 'vitest';
import { makeScratch, type Scratch } from '../../fixtures/nbd/scratch.ts';
import { connectNbd, type NbdConnection, type NbdConnectOptions } from '../../src/nbd/client.ts';
import { Feed, type StreamParser } from '../../src/nbd/feed.ts';

/** A scratch directory that goes when the test ends. */
export async function scratch(): Promise<Scratch> {
  const made = await makeScratch();
  onTestFinished(() => made.close());
  return made;
}

/** A connection that is closed when the test ends. */
export async function connected(options: NbdConnectOptions): Promise<NbdConnection> {
  const connection = await connectNbd(options);
  onTestFinished(() => connection.close());
  return connection;
}

/** Bytes that differ from place to place. */
export function pattern(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length);
  let state = seed;
  for (let i = 0; i < length; i += 1) {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    bytes[i] = state >> 16;
  }
  return bytes;
}

/** All extents of a context, put together from as many answers as it takes. */
export async function wholeMap(connection: NbdConnection, context: string) {
  const extents: { offset: number; length: number; flags: number }[] = [];
  for (let offset = 0; offset < connection.size; ) {
    for (const { length, flags } of await connection.blockStatus(
      context,
      offset,
      connection.size - offset,
    )) {
      const last = extents[extents.length - 1];
      if (last?.flags === flags) last.length += length;
      else extents.push({ offset, length, flags });
      offset += length;
    }
  }
  return extents;
}

/** Feeds `stream` in pieces cut at `cuts`; in the parser's own buffers where it offers them, if `direct`. */
export function feedInPieces(
  parser: StreamParser<unknown>,
  stream: Buffer,
  cuts: readonly number[],
  direct = false,
): void {
  const feed = new Feed(parser);
  const ends = [...cuts].map((cut) => cut % (stream.length + 1)).sort((a, b) => a - b);
  let at = 0;
  for (const end of [...ends, stream.length]) {
    while (at < end) {
      const room = direct ? feed.room : undefined;
      if (room !== undefined && room.length > 0) {
        const count = Math.min(room.length, end - at);
        room.set(stream.subarray(at, at + count));
        feed.filled(count);
        at += count;
      } else {
        const size = direct ? 1 : end - at;
        // A copy: the parser may not keep what it was shown.
        const piece = Buffer.from(stream.subarray(at, at + size));
        feed.push(piece);
        piece.fill(0xee);
        at += size;
      }
    }
  }
}
