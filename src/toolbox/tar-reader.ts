import { BackupError } from '../protocol/errors.ts';
import { blockSize, decodeHeader, isStar, padded, type TarHeader } from './tar-header.ts';
import { checkName, showName, TarDamage, TarFault, untilNul } from './tar-names.ts';
import { checkGlobalPax, type PaxRecord, parsePax, paxFields } from './tar-pax.ts';
import { gnuSparse, type PaxSparse, paxSparse, SparseMapText } from './tar-sparse.ts';
import { isZero } from './zero.ts';

/** An extended header (`x`, `g`) or a long name (`L`, `K`), with the body up to the next block. */
export interface TarMeta {
  readonly header: TarHeader;
  readonly body: Buffer;
  /** Of a pax header. */
  readonly records: readonly PaxRecord[];
}

/** One member as GNU tar reads it. */
export interface TarMember {
  readonly metas: readonly TarMeta[];
  readonly header: TarHeader;
  /** Blocks that continue the header of an old sparse file. */
  readonly more: readonly Buffer[];
  readonly name: Buffer;
  /** The name for who does not know GNU's sparse files. */
  readonly headerName: Buffer;
  readonly linkName: Buffer;
  /** Of the body in the archive, without padding. */
  readonly size: number;
}

/** Called in the order of the archive, while `push` runs. */
export interface TarHandlers {
  member(member: TarMember): void;
  /** A part of the last member's body, padding included. */
  body(chunk: Buffer): void;
  /** A header for all members that follow. */
  global?(meta: TarMeta): void;
  /** After the last member. */
  end?(): void;
}

type Need = number | { readonly upTo: number };

export const maxMetaSize = 16 * 1024 * 1024;
const metaTypes = 'xgLK';
const memberTypes = '\x00' + '01234567S';
/** Without types that have no body, whatever their size says. */
const bodyTypes = '\x00' + '07S';
const saturatedSize = 0o77777777777;

/**
 * Reads a tar archive in pieces of any size and refuses everything that GNU tar might read in another way than
 * it is written, names that leave the target directory, and archives without their end.
 */
export class TarReader {
  readonly #file: string;
  readonly #handlers: TarHandlers;
  readonly #steps: Generator<Need, void, Buffer>;
  #need: Need;
  #pending: Buffer[] = [];
  #length = 0;
  #empty = true;
  #complete = false;
  #member: Buffer | undefined;

  constructor(file: string, handlers: TarHandlers) {
    this.#file = file;
    this.#handlers = handlers;
    this.#steps = this.#archive();
    this.#need = this.#steps.next().value ?? 0;
  }

  push(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#empty = false;
    this.#pending.push(chunk);
    this.#length += chunk.length;
    try {
      this.#run();
    } catch (error) {
      throw error instanceof TarFault ? this.#refusal(error) : error;
    }
  }

  /** The archive's bytes are over. */
  end(): void {
    if (this.#complete) return;
    const text = this.#empty ? 'it is empty' : 'it is cut off: its end is missing';
    throw this.#refusal(new TarDamage(text));
  }

  #refusal(fault: TarFault): BackupError {
    const after = this.#member === undefined ? '' : `, at or after ${showName(this.#member)}`;
    const advice = fault instanceof TarDamage ? '' : '; unpack it by hand as the README says';
    const text = `${fault.message}${after}${advice}`;
    return new BackupError(`the archive ${this.#file} cannot be restored: ${text}`, {
      cause: fault,
    });
  }

  #run(): void {
    for (;;) {
      const need = this.#need;
      const length = typeof need === 'number' ? need : Math.min(need.upTo, this.#length);
      if (length > this.#length || (typeof need !== 'number' && length === 0)) return;
      const { value, done } = this.#steps.next(this.#take(length));
      if (done) return;
      this.#need = value;
    }
  }

  #take(length: number): Buffer {
    let [first] = this.#pending;
    if (first === undefined || first.length < length) {
      first = Buffer.concat(this.#pending);
      this.#pending = [first];
    }
    this.#length -= length;
    if (first.length === length) this.#pending.shift();
    else this.#pending[0] = first.subarray(length);
    return first.subarray(0, length);
  }

  *#archive(): Generator<Need, void, Buffer> {
    for (;;) {
      const block = yield blockSize;
      if (!isZero(block)) yield* this.#entry(block);
      else if (isZero(yield blockSize)) break;
      else throw new TarFault('a zero block stands among its members');
    }
    this.#complete = true;
    this.#member = undefined;
    this.#handlers.end?.();
    for (;;) {
      if (!isZero(yield { upTo: Number.MAX_SAFE_INTEGER })) {
        throw new TarFault('more data follows its end, which tar would not restore');
      }
    }
  }

  *#entry(first: Buffer): Generator<Need, void, Buffer> {
    const metas: TarMeta[] = [];
    let block = first;
    for (;;) {
      if (isZero(block)) throw new TarFault('an extended header has no member');
      const header = decodeHeader(block);
      if (!metaTypes.includes(header.type)) return yield* this.#body(header, metas);
      if (metas.some((meta) => meta.header.type === header.type)) {
        throw new TarFault('a member has two extended headers of one kind');
      }
      const meta = yield* readMeta(header);
      if (header.type === 'g') {
        if (metas.length > 0) throw new TarFault('a global header stands among those of a member');
        checkGlobalPax(meta.records);
        return this.#handlers.global?.(meta);
      }
      metas.push(meta);
      block = yield blockSize;
    }
  }

  *#body(header: TarHeader, metas: readonly TarMeta[]): Generator<Need, void, Buffer> {
    this.#member = header.name;
    const { member, sparse } = describe(header, metas, (name) => {
      this.#member = name;
    });
    const more = header.type === 'S' ? yield* gnuSparse(header) : [];
    this.#handlers.member({ ...member, more });
    const map = sparse?.inBody ? new SparseMapText(sparse.map, member.size) : undefined;
    if (sparse?.inBody === false) sparse.map.finish(member.size);
    for (let left = padded(member.size); left > 0; ) {
      const chunk = yield { upTo: left };
      left -= chunk.length;
      map?.push(chunk);
      this.#handlers.body(chunk);
    }
    map?.finish();
  }
}

function* readMeta(header: TarHeader): Generator<Need, TarMeta, Buffer> {
  if (header.size === 0) throw new TarFault('an extended header is empty');
  if (header.size > maxMetaSize) {
    throw new TarFault(`an extended header is larger than ${maxMetaSize / 1024 / 1024} MiB`);
  }
  const body = yield padded(header.size);
  const pax = header.type === 'x' || header.type === 'g';
  return { header, body, records: pax ? parsePax(body.subarray(0, header.size)) : [] };
}

/** Puts together what headers say of a member, and checks it; `named` hears of its name first. */
function describe(
  header: TarHeader,
  metas: readonly TarMeta[],
  named: (name: Buffer) => void,
): { member: Omit<TarMember, 'more'>; sparse: PaxSparse | undefined } {
  const { type, magic } = header;
  const pax = paxFields(metas.find((meta) => meta.header.type === 'x')?.records ?? []);
  const sparse = paxSparse(pax.sparse);
  const headerName = pax.path ?? longName(metas, 'L') ?? header.name;
  const name = sparse?.name ?? headerName;
  named(name);
  if (!memberTypes.includes(type)) {
    throw new TarFault(`its type ${JSON.stringify(type)} is not one that a container has`);
  }
  const long = metas.some((meta) => meta.header.type !== 'x');
  if (long && (pax.path ?? pax.linkpath ?? sparse?.name) !== undefined) {
    throw new TarFault('it has long names in two formats');
  }
  const odd = sparse !== undefined && (!'\x000'.includes(type) || magic !== 'posix');
  if (odd || (type === 'S' && (magic !== 'gnu' || pax.size !== undefined)) || isStarSparse()) {
    throw new TarFault('it is a sparse file in a format that tar programs read differently');
  }
  if (pax.size !== undefined && ![0, saturatedSize, pax.size].includes(header.size)) {
    throw new TarFault('its headers have two sizes');
  }
  const size = pax.size ?? header.size;
  const folder = name.at(-1) === 0x2f || headerName.at(-1) === 0x2f;
  if (size > 0 && (!bodyTypes.includes(type) || folder)) {
    throw new TarFault('it has a body although it is not a file');
  }
  for (const each of [name, headerName]) checkName(each, 'name');
  const linkName = pax.linkpath ?? longName(metas, 'K') ?? header.linkName;
  if (type === '1') checkName(linkName, 'link target');
  return { member: { metas, header, name, headerName, linkName, size }, sparse };

  function isStarSparse(): boolean {
    return (sparse !== undefined || type === 'S') && magic === 'posix' && isStar(header.block);
  }
}

/** GNU tar reads up to the first NUL, be it in the padding. */
function longName(metas: readonly TarMeta[], type: 'L' | 'K'): Buffer | undefined {
  const meta = metas.find((each) => each.header.type === type);
  if (meta === undefined) return undefined;
  const { size } = meta.header;
  const name = untilNul(meta.body);
  if (name.length !== size && name.length !== size - 1) {
    throw new TarFault('a long name does not have the length that its header says');
  }
  return name;
}
