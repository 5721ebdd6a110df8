import { protocolError } from './errors.ts';
import type { StatusExtent } from './reply-message.ts';

/** Puts the parts of one reply together. Every method throws NbdError for what does not belong to it. */
export interface Assembly<T> {
  /** Where the data of the export at `offset` goes; a simple reply has no offset. */
  data(offset: number | undefined, length: number): Uint8Array;
  hole(offset: number, length: number): void;
  status(contextId: number, extents: readonly StatusExtent[]): void;
  /** Of a complete reply without an error; throws if something is missing. */
  result(): T;
}

/** The reply to a request that is answered by yes or no. */
export class PlainAssembly implements Assembly<void> {
  data(_offset: number | undefined, _length: number): Uint8Array {
    throw protocolError('data that nobody asked for');
  }
  hole(_offset: number, _length: number): void {
    throw protocolError('a hole that nobody asked for');
  }
  status(_contextId: number, _extents: readonly StatusExtent[]): void {
    throw protocolError('block status that nobody asked for');
  }
  result(): void {}
}

/** More separate pieces than any server sends on purpose. */
const maxPieces = 1 << 16;

/** The data of a read, which may come in pieces and in any order, but each byte once. */
export class ReadAssembly extends PlainAssembly implements Assembly<Buffer> {
  readonly #offset: number;
  readonly #length: number;
  readonly #unfragmented: boolean;
  /** Allocated when the first piece comes: requests may wait for long. */
  #buffer: Buffer | undefined;
  /** What has come, ascending, as pairs of start and end, neighbours joined. */
  readonly #pieces: { start: number; end: number }[] = [];
  #contentChunks = 0;

  constructor(
    offset: number,
    length: number,
    options: { unfragmented: boolean; into?: Buffer | undefined },
  ) {
    super();
    this.#buffer = options.into;
    this.#offset = offset;
    this.#length = length;
    this.#unfragmented = options.unfragmented;
  }

  override data(offset: number | undefined, length: number): Uint8Array {
    return this.#claim(offset ?? this.#offset, length);
  }

  override hole(offset: number, length: number): void {
    this.#claim(offset, length).fill(0);
  }

  override result(): Buffer {
    const [piece] = this.#pieces;
    if (this.#buffer === undefined || piece === undefined)
      throw protocolError('a read without data');
    if (piece.start !== 0 || piece.end !== this.#length) {
      throw protocolError('a read that lacks a part of its data');
    }
    return this.#buffer;
  }

  #claim(offset: number, length: number): Uint8Array {
    const start = offset - this.#offset;
    const end = start + length;
    if (length === 0 || start < 0 || end > this.#length) {
      throw protocolError(`${length} bytes at ${offset}, outside of what was asked for`);
    }
    this.#contentChunks += 1;
    if (this.#unfragmented && this.#contentChunks > 1) {
      throw protocolError('a fragmented reply to a read that forbids it');
    }
    this.#note(start, end);
    this.#buffer ??= Buffer.allocUnsafeSlow(this.#length);
    return this.#buffer.subarray(start, end);
  }

  #note(start: number, end: number): void {
    const pieces = this.#pieces;
    let at = pieces.length;
    while (at > 0 && (pieces[at - 1]?.start ?? 0) >= end) at -= 1;
    const before = pieces[at - 1];
    const after = pieces[at];
    if (before !== undefined && before.end > start) throw protocolError('the same data twice');
    const joinsAfter = after?.start === end;
    if (before?.end === start) {
      before.end = joinsAfter ? after.end : end;
      if (joinsAfter) pieces.splice(at, 1);
    } else if (joinsAfter) {
      after.start = start;
    } else {
      if (pieces.length === maxPieces) throw protocolError('a read in far too many pieces');
      pieces.splice(at, 0, { start, end });
    }
  }
}

/** Block status: one list of extents per metadata context. */
export class StatusAssembly extends PlainAssembly implements Assembly<StatusExtent[]> {
  readonly #contextId: number;
  readonly #granted: ReadonlySet<number>;
  readonly #length: number;
  readonly #seen = new Set<number>();
  #extents: StatusExtent[] | undefined;

  constructor(contextId: number, granted: Iterable<number>, length: number) {
    super();
    this.#contextId = contextId;
    this.#granted = new Set(granted);
    this.#length = length;
  }

  override status(contextId: number, extents: readonly StatusExtent[]): void {
    if (!this.#granted.has(contextId)) throw protocolError('block status of an unknown context');
    if (this.#seen.has(contextId)) throw protocolError('block status of a context twice');
    this.#seen.add(contextId);
    if (contextId === this.#contextId) this.#extents = this.#clip(extents);
  }

  override result(): StatusExtent[] {
    if (this.#extents === undefined) throw protocolError('no block status of the context');
    return this.#extents;
  }

  /** The last extent may reach beyond what was asked for. */
  #clip(extents: readonly StatusExtent[]): StatusExtent[] {
    const clipped: StatusExtent[] = [];
    let left = this.#length;
    for (const { length, flags } of extents) {
      if (length === 0) throw protocolError('an empty extent');
      if (left === 0) throw protocolError('more extents than were asked for');
      clipped.push({ length: Math.min(length, left), flags });
      left -= Math.min(length, left);
    }
    return clipped;
  }
}
