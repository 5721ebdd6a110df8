import { magic } from './constants.ts';
import type { StreamParser } from './feed.ts';

/** An option of the client, or the server's reply to one. */
export interface OptionMessage {
  readonly option: number;
  readonly data: Buffer;
}

export interface OptionReply extends OptionMessage {
  readonly type: number;
}

const noData = Buffer.alloc(0);
/** Names, contexts and texts are 4096 bytes at most; nothing of use is longer than this. */
const maxOptionData = 64 * 1024;

/** What a client asks for. */
export function encodeOption(option: number, data: Uint8Array = noData): Buffer {
  const head = Buffer.allocUnsafe(16);
  head.writeBigUInt64BE(magic.option, 0);
  head.writeUInt32BE(option, 8);
  head.writeUInt32BE(data.length, 12);
  return Buffer.concat([head, data]);
}

/** What a server answers. */
export function encodeOptionReply(option: number, type: number, data: Uint8Array = noData): Buffer {
  const head = Buffer.allocUnsafe(20);
  head.writeBigUInt64BE(magic.optionReply, 0);
  head.writeUInt32BE(option, 8);
  head.writeUInt32BE(type, 12);
  head.writeUInt32BE(data.length, 16);
  return Buffer.concat([head, data]);
}

/** Reads one option; undefined if that is not what the stream holds. */
export function* parseOption(): StreamParser<OptionMessage | undefined> {
  const head = yield { take: 16 };
  const option = head.readUInt32BE(8);
  const length = head.readUInt32BE(12);
  if (head.readBigUInt64BE(0) !== magic.option || length > maxOptionData) return undefined;
  return { option, data: Buffer.from(yield { take: length }) };
}

/** Reads one reply; undefined if that is not what the stream holds. */
export function* parseOptionReply(): StreamParser<OptionReply | undefined> {
  const head = yield { take: 20 };
  const option = head.readUInt32BE(8);
  const type = head.readUInt32BE(12);
  const length = head.readUInt32BE(16);
  if (head.readBigUInt64BE(0) !== magic.optionReply || length > maxOptionData) return undefined;
  return { option, type, data: Buffer.from(yield { take: length }) };
}

/** The data of options that list or set metadata contexts. */
export interface ContextQuery {
  readonly exportName: string;
  readonly queries: readonly string[];
}

/** Undefined if the lengths in it do not add up. */
export function decodeContextQuery(data: Buffer): ContextQuery | undefined {
  const name = stringAt(data, 0);
  if (name === undefined || name.end + 4 > data.length) return undefined;
  const count = data.readUInt32BE(name.end);
  const queries: string[] = [];
  let at = name.end + 4;
  while (at < data.length && queries.length < count) {
    const query = stringAt(data, at);
    if (query === undefined) return undefined;
    queries.push(query.text);
    at = query.end;
  }
  return at === data.length && queries.length === count
    ? { exportName: name.text, queries }
    : undefined;
}

/** The data of NBD_OPT_INFO and NBD_OPT_GO; undefined if the lengths in it do not add up. */
export function decodeInfoQuery(
  data: Buffer,
): { exportName: string; wanted: number[] } | undefined {
  const name = stringAt(data, 0);
  if (name === undefined || name.end + 2 > data.length) return undefined;
  const count = data.readUInt16BE(name.end);
  const start = name.end + 2;
  if (start + 2 * count !== data.length) return undefined;
  const wanted = Array.from({ length: count }, (_, i) => data.readUInt16BE(start + 2 * i));
  return { exportName: name.text, wanted };
}

function stringAt(data: Buffer, at: number): { text: string; end: number } | undefined {
  if (at + 4 > data.length) return undefined;
  const end = at + 4 + data.readUInt32BE(at);
  return end > data.length ? undefined : { text: data.toString('utf8', at + 4, end), end };
}
