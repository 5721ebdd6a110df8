import { readU64, writeU64 } from './bytes.ts';
import * as nbd from './constants.ts';
import { protocolError } from './errors.ts';
import type { StreamParser } from './feed.ts';

/** One descriptor of a block status reply; the flags mean what the metadata context says. */
export interface StatusExtent {
  readonly length: number;
  readonly flags: number;
}

/**
 * Takes the messages of the server's stream, each as soon as it is known. Any method may throw to end the
 * parsing. Cookies of 2^53 and more come rounded; they belong to no request.
 */
export interface ReplySink {
  /** Before anything else of a reply; throws if nothing waits for it. */
  begin(cookie: number): void;
  /** How many bytes of data follow a simple reply without error. */
  simpleLength(cookie: number): number;
  /** Where to put data of the export; undefined to drop it. `offset` is undefined in a simple reply. */
  data(cookie: number, offset: number | undefined, length: number): Uint8Array | undefined;
  hole(cookie: number, offset: number, length: number): void;
  status(cookie: number, contextId: number, extents: readonly StatusExtent[]): void;
  error(cookie: number, errno: number, text: string, offset?: number): void;
  /** The reply is complete. */
  done(cookie: number): void;
}

/** Reads replies until the stream ends. */
export function* parseReplies(sink: ReplySink, structured: boolean): StreamParser {
  for (;;) {
    const head = yield { take: 16 };
    const magic = head.readUInt32BE(0);
    if (magic === nbd.magic.simpleReply) {
      yield* simpleReply(sink, head.readUInt32BE(4), readU64(head, 8), structured);
    } else if (magic === nbd.magic.structuredReply) {
      if (!structured) throw protocolError('a structured reply, which was not agreed on');
      const [flags, type, cookie] = [head.readUInt16BE(4), head.readUInt16BE(6), readU64(head, 8)];
      const length = (yield { take: 4 }).readUInt32BE();
      sink.begin(cookie);
      yield* chunk(sink, cookie, type, length, (flags & nbd.chunkFlagDone) !== 0);
    } else {
      throw protocolError('junk in place of a reply');
    }
  }
}

function* simpleReply(
  sink: ReplySink,
  errno: number,
  cookie: number,
  structured: boolean,
): StreamParser<void> {
  sink.begin(cookie);
  const length = sink.simpleLength(cookie);
  if (structured && length > 0) throw protocolError('a simple reply to a read');
  if (errno !== 0) sink.error(cookie, errno, '');
  else if (length > 0) yield* place(sink.data(cookie, undefined, length), length);
  sink.done(cookie);
}

function* chunk(
  sink: ReplySink,
  cookie: number,
  type: number,
  length: number,
  final: boolean,
): StreamParser<void> {
  const expect = (right: boolean) => {
    if (!right) throw protocolError(`a chunk of type ${type} with a payload of ${length} bytes`);
  };
  if (type === nbd.chunkType.none) {
    expect(length === 0);
    if (!final) throw protocolError('an empty chunk that is not the final one');
  } else if (type === nbd.chunkType.offsetData) {
    expect(length > 8 && length <= nbd.maxPayload + 8);
    const offset = readU64(yield { take: 8 }, 0);
    yield* place(sink.data(cookie, offset, length - 8), length - 8);
  } else if (type === nbd.chunkType.offsetHole) {
    expect(length === 12);
    const payload = yield { take: 12 };
    sink.hole(cookie, readU64(payload, 0), payload.readUInt32BE(8));
  } else if (type === nbd.chunkType.blockStatus) {
    expect(length >= 12 && length % 8 === 4 && length <= 4 + 8 * nbd.maxStatusExtents);
    const payload = yield { take: length };
    const extents = Array.from({ length: (length - 4) / 8 }, (_, i) => ({
      length: payload.readUInt32BE(4 + 8 * i),
      flags: payload.readUInt32BE(8 + 8 * i),
    }));
    sink.status(cookie, payload.readUInt32BE(0), extents);
  } else if ((type & nbd.chunkType.errorBit) !== 0) {
    expect(length >= 6 && length <= 2 * nbd.maxString);
    const payload = yield { take: length };
    const textEnd = 6 + payload.readUInt16BE(4);
    const hasOffset = type === nbd.chunkType.errorOffset;
    expect(textEnd + (hasOffset ? 8 : 0) <= length && textEnd <= 6 + nbd.maxString);
    const errno = payload.readUInt32BE(0);
    if (errno === 0) throw protocolError('an error of number 0');
    const text = payload.toString('utf8', 6, textEnd);
    sink.error(cookie, errno, text, hasOffset ? readU64(payload, textEnd) : undefined);
  } else {
    throw protocolError(`a chunk of unknown type ${type}`);
  }
  if (final) sink.done(cookie);
}

function* place(target: Uint8Array | undefined, length: number): StreamParser<void> {
  yield target === undefined ? { skip: length } : { fill: target };
}

/** A simple reply, without the data that may follow it. */
export function encodeSimpleReply(cookie: bigint, errno: number): Buffer {
  const bytes = Buffer.allocUnsafe(16);
  bytes.writeUInt32BE(nbd.magic.simpleReply, 0);
  bytes.writeUInt32BE(errno, 4);
  bytes.writeBigUInt64BE(cookie, 8);
  return bytes;
}

/** The 20 bytes in front of a chunk's payload. */
export function encodeChunk(
  cookie: bigint,
  type: number,
  length: number,
  options: { final: boolean },
): Buffer {
  const bytes = Buffer.allocUnsafe(20);
  bytes.writeUInt32BE(nbd.magic.structuredReply, 0);
  bytes.writeUInt16BE(options.final ? nbd.chunkFlagDone : 0, 4);
  bytes.writeUInt16BE(type, 6);
  bytes.writeBigUInt64BE(cookie, 8);
  bytes.writeUInt32BE(length, 16);
  return bytes;
}

/** What stands before the data of an offset-data chunk: its header and the offset. */
export function encodeDataChunk(
  cookie: bigint,
  offset: number,
  length: number,
  options: { final: boolean },
): Buffer {
  const start = Buffer.allocUnsafe(8);
  writeU64(start, offset, 0);
  return Buffer.concat([encodeChunk(cookie, nbd.chunkType.offsetData, length + 8, options), start]);
}

/** A whole chunk that says that a part of the export reads as zeroes. */
export function encodeHoleChunk(
  cookie: bigint,
  offset: number,
  length: number,
  options: { final: boolean },
): Buffer {
  const payload = Buffer.allocUnsafe(12);
  writeU64(payload, offset, 0);
  payload.writeUInt32BE(length, 8);
  return Buffer.concat([encodeChunk(cookie, nbd.chunkType.offsetHole, 12, options), payload]);
}

/** A whole error chunk, with the offset at fault where there is one. */
export function encodeErrorChunk(
  cookie: bigint,
  errno: number,
  text: string,
  options: { final: boolean; offset?: number },
): Buffer {
  const message = Buffer.from(text).subarray(0, nbd.maxString);
  const payload = Buffer.alloc(6 + message.length + (options.offset === undefined ? 0 : 8));
  payload.writeUInt32BE(errno, 0);
  payload.writeUInt16BE(message.length, 4);
  payload.set(message, 6);
  if (options.offset !== undefined) writeU64(payload, options.offset, 6 + message.length);
  const type = options.offset === undefined ? nbd.chunkType.error : nbd.chunkType.errorOffset;
  return Buffer.concat([encodeChunk(cookie, type, payload.length, options), payload]);
}

/** A whole block status chunk. */
export function encodeStatusChunk(
  cookie: bigint,
  contextId: number,
  extents: readonly StatusExtent[],
  options: { final: boolean },
): Buffer {
  const payload = Buffer.allocUnsafe(4 + 8 * extents.length);
  payload.writeUInt32BE(contextId, 0);
  extents.forEach(({ length, flags }, i) => {
    payload.writeUInt32BE(length, 4 + 8 * i);
    payload.writeUInt32BE(flags, 8 + 8 * i);
  });
  const head = encodeChunk(cookie, nbd.chunkType.blockStatus, payload.length, options);
  return Buffer.concat([head, payload]);
}
