import { bigNumber, blockSize, padded, type TarHeader } from './tar-header.ts';
import { TarFault } from './tar-names.ts';
import { bigDecimal, decimal, type PaxRecord } from './tar-pax.ts';

/**
 * Where the data of a sparse file goes. GNU tar reads as many blocks as the map asks for, whatever the size in
 * the header: a map that disagrees would shift all that follows.
 */
export class SparseMap {
  readonly #realSize: bigint;
  #end = 0n;
  #data = 0n;

  constructor(realSize: bigint) {
    this.#realSize = realSize;
  }

  add(offset: bigint, length: bigint): void {
    // Only the last piece of data may end within a block.
    const partial = length > 0n && this.#data % BigInt(blockSize) !== 0n;
    if (partial || offset < this.#end || offset + length > this.#realSize) throw malformed();
    this.#end = offset + length;
    this.#data += length;
  }

  /** `size`: of the data in the archive. */
  finish(size: number): void {
    if (this.#data !== BigInt(size)) throw malformed();
  }
}

/** A sparse file as its pax header describes it; `inBody` has still to be read. */
export interface PaxSparse {
  readonly name?: Buffer;
  readonly map: SparseMap;
  readonly inBody: boolean;
}

/** Undefined if the header has no record of that kind. */
export function paxSparse(records: readonly PaxRecord[]): PaxSparse | undefined {
  if (records.length === 0) return undefined;
  const values = new Map(records.map(({ key, value }) => [key.slice('GNU.sparse.'.length), value]));
  const keys = [...values.keys()].sort().join(' ');
  const value = (key: string) => values.get(key) ?? Buffer.alloc(0);
  const name = values.get('name');
  const named = name === undefined ? {} : { name };
  if (keys === 'major minor name realsize') {
    if (decimal(value('major')) !== 1 || decimal(value('minor')) !== 0) throw malformed();
    return { ...named, map: new SparseMap(bigDecimal(value('realsize'))), inBody: true };
  }
  if (!/^((map name|map) numblocks|numblocks numbytes offset) size$/.test(keys)) throw malformed();
  // Without the number GNU tar has no room for the map, and reads the file as a plain one.
  const order = records.map(({ key }) => key);
  const first = order.findIndex((key) => /\.(map|offset|numbytes)$/.test(key));
  if (first < order.indexOf('GNU.sparse.numblocks')) throw malformed();
  const map = new SparseMap(bigDecimal(value('size')));
  const pairs = values.has('map')
    ? value('map').toString('latin1').split(',').map(latin1)
    : alternating(records);
  if (pairs.length !== 2 * decimal(value('numblocks'))) throw malformed();
  for (let at = 0; at < pairs.length; at += 2) {
    map.add(bigDecimal(pairs[at] ?? latin1('')), bigDecimal(pairs[at + 1] ?? latin1('')));
  }
  return { ...named, map, inBody: false };
}

/** Reads the map that stands before the data (version 1.0), in pieces, without keeping it. */
export class SparseMapText {
  readonly #map: SparseMap;
  readonly #size: number;
  #digits = '';
  #read = 0;
  #numbers = 0;
  #wanted = 1;
  #offset = 0n;

  /** `size`: of map and data. */
  constructor(map: SparseMap, size: number) {
    this.#map = map;
    this.#size = size;
  }

  push(chunk: Buffer): void {
    for (let at = 0; at < chunk.length && this.#numbers < this.#wanted; at++) {
      this.#read++;
      if (chunk[at] !== 0x0a) {
        this.#digits += String.fromCharCode(chunk[at] ?? 0);
        if (this.#digits.length > longestNumber) throw malformed();
        continue;
      }
      this.#number(latin1(this.#digits));
      this.#digits = '';
      if (this.#numbers === this.#wanted) this.#map.finish(this.#size - padded(this.#read));
    }
  }

  /** After the body. */
  finish(): void {
    if (this.#numbers < this.#wanted) throw malformed();
  }

  #number(digits: Buffer): void {
    if (this.#numbers === 0) this.#wanted += 2 * decimal(digits);
    else if (this.#numbers % 2 === 1) this.#offset = bigDecimal(digits);
    else this.#map.add(this.#offset, bigDecimal(digits));
    this.#numbers++;
  }
}

/** Reads the map of a member of type S; asks for the blocks that continue it. */
export function* gnuSparse(header: TarHeader): Generator<number, Buffer[], Buffer> {
  const realSize = bigNumber(header.block, 483, 12);
  if (realSize === undefined) throw malformed();
  const map = new SparseMap(realSize);
  const more: Buffer[] = [];
  let full = slots(map, header.block, 386, 4);
  let goesOn = header.block[482] !== 0;
  while (goesOn) {
    // GNU tar reads no further block after a free slot.
    if (!full) throw malformed();
    const block = yield blockSize;
    more.push(block);
    if (more.length > maxBlocks) throw malformed();
    full = slots(map, block, 0, 21);
    goesOn = block[504] !== 0;
  }
  map.finish(header.size);
  return more;
}

/** 16 MiB, as much as an extended header may have. */
const maxBlocks = 32_768;
const longestNumber = 19;

/** True if none of the slots is free. */
function slots(map: SparseMap, block: Buffer, at: number, count: number): boolean {
  for (let slot = 0; slot < count; slot++, at += 24) {
    if (block[at + 12] === 0) return false;
    const offset = bigNumber(block, at, 12);
    const length = bigNumber(block, at + 12, 12);
    if (offset === undefined || length === undefined) throw malformed();
    map.add(offset, length);
  }
  return true;
}

/** Offsets and lengths in the order in which GNU tar pairs them. */
function alternating(records: readonly PaxRecord[]): Buffer[] {
  const keys = ['GNU.sparse.offset', 'GNU.sparse.numbytes'];
  const pairs = records.filter(({ key }) => keys.includes(key));
  if (pairs.some(({ key }, at) => key !== keys[at % 2])) throw malformed();
  return pairs.map(({ value }) => value);
}

function latin1(text: string): Buffer {
  return Buffer.from(text, 'latin1');
}

function malformed(): TarFault {
  return new TarFault('its map of a sparse file is malformed');
}
