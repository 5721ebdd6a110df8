import { largestOffset } from './tar-header.ts';
import { TarFault } from './tar-names.ts';

/** One `LENGTH KEY=VALUE` line of a pax extended header. */
export interface PaxRecord {
  readonly key: string;
  readonly value: Buffer;
  /** Where KEY begins and VALUE ends in the body. */
  readonly start: number;
  readonly end: number;
}

/** What a member's pax header says that decides what is read and where it goes. */
export interface PaxFields {
  readonly path?: Buffer;
  readonly linkpath?: Buffer;
  readonly size?: number;
  readonly sparse: readonly PaxRecord[];
}

const longestNumber = 20;

/** Lengths count bytes: a value may hold line ends, NULs and any encoding. */
export function parsePax(body: Buffer): PaxRecord[] {
  const records: PaxRecord[] = [];
  for (let at = 0; at < body.length; ) {
    const [head, digits] =
      /^([1-9]\d*) /.exec(body.toString('latin1', at, at + longestNumber)) ?? [];
    const end = at + Number(digits) - 1;
    if (head === undefined || !(end < body.length) || body[end] !== 0x0a) throw malformed();
    const start = at + head.length;
    const equals = body.subarray(start, end).indexOf('=');
    const key = body.toString('latin1', start, start + equals);
    // GNU tar skips further blanks, and reads a NUL as the end. Names of xattrs may hold line ends.
    if (equals <= 0 || /\0|^[ \t]/.test(key)) throw malformed();
    records.push({ key, value: body.subarray(start + equals + 1, end), start, end });
    at = end + 1;
  }
  return records;
}

/** The fields of one member's records. */
export function paxFields(records: readonly PaxRecord[]): PaxFields {
  const found = new Map<string, Buffer>();
  const sparse: PaxRecord[] = [];
  for (const { key, value, ...place } of records) {
    const known = key === 'path' || key === 'linkpath' || key === 'size';
    if (!known && !key.startsWith('GNU.')) continue;
    // Which of two counts is not the same for all.
    if (found.has(key) && !repeatable.has(key)) {
      throw new TarFault(`its extended header has ${key} twice`);
    }
    if (value.includes(0)) throw new TarFault(`its extended header has a NUL in ${key}`);
    found.set(key, value);
    if (key.startsWith('GNU.sparse.')) sparse.push({ key, value, ...place });
    else if (!known) throw new TarFault(`its extended header has the unsupported keyword ${key}`);
  }
  const path = found.get('path');
  const linkpath = found.get('linkpath');
  const size = found.get('size');
  return {
    ...(path !== undefined && { path }),
    ...(linkpath !== undefined && { linkpath }),
    ...(size !== undefined && { size: decimal(size) }),
    sparse,
  };
}

/** Refuses a header for all members that would rename, resize or continue them. */
export function checkGlobalPax(records: readonly PaxRecord[]): void {
  for (const { key } of records) {
    if (/^(path|linkpath|size|GNU\..*|SCHILY\.(xattr|acl)\b.*)$/s.test(key)) {
      throw new TarFault(`a global extended header sets ${key} for all members`);
    }
  }
}

/** Digits only: nothing here is signed or padded. */
export function decimal(value: Buffer): number {
  const number = Number(bigDecimal(value));
  if (!Number.isSafeInteger(number)) throw noNumber();
  return number;
}

/** The same for places in sparse files. */
export function bigDecimal(value: Buffer): bigint {
  const text = value.toString('latin1');
  if (!/^\d{1,19}$/.test(text) || BigInt(text) > largestOffset) throw noNumber();
  return BigInt(text);
}

function noNumber(): TarFault {
  return new TarFault('its extended header has something else where a number belongs');
}

/** Version 0.0 of sparse maps, from before they had versions. */
const repeatable = new Set(['GNU.sparse.offset', 'GNU.sparse.numbytes']);

function malformed(): TarFault {
  return new TarFault('an extended header is malformed');
}
