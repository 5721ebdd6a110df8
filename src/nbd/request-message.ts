import { readU64, writeU64 } from './bytes.ts';
import { magic } from './constants.ts';
import type { StreamParser } from './feed.ts';

/** A request without its payload. The cookie is opaque to the server. */
export interface Request {
  readonly flags: number;
  readonly type: number;
  readonly cookie: bigint;
  readonly offset: number;
  readonly length: number;
}

const size = 28;

/** The 28 bytes in front of a request's payload. */
export function encodeRequest({ flags, type, cookie, offset, length }: Request): Buffer {
  const bytes = Buffer.allocUnsafe(size);
  bytes.writeUInt32BE(magic.request, 0);
  bytes.writeUInt16BE(flags, 4);
  bytes.writeUInt16BE(type, 6);
  bytes.writeBigUInt64BE(cookie, 8);
  writeU64(bytes, offset, 16);
  bytes.writeUInt32BE(length, 24);
  return bytes;
}

/** Reads one request; undefined if that is not what the stream holds. */
export function* parseRequest(): StreamParser<Request | undefined> {
  const bytes = yield { take: size };
  if (bytes.readUInt32BE(0) !== magic.request) return undefined;
  return {
    flags: bytes.readUInt16BE(4),
    type: bytes.readUInt16BE(6),
    cookie: bytes.readBigUInt64BE(8),
    offset: readU64(bytes, 16),
    length: bytes.readUInt32BE(24),
  };
}
