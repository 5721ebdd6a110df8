import { Parser } from 'tar/parse';
import type { ReadEntry } from 'tar/read-entry';
import { messageOf } from '../protocol/errors.ts';
import { TarFault } from './tar-names.ts';
import type { PaxRecord } from './tar-pax.ts';
import { maxMetaSize, type TarMember, type TarMeta } from './tar-reader.ts';

const typeNames: Readonly<Record<string, string>> = {
  '1': 'Link',
  '2': 'SymbolicLink',
  '3': 'CharacterDevice',
  '4': 'BlockDevice',
  '5': 'Directory',
  '6': 'FIFO',
  '7': 'ContiguousFile',
  S: 'SparseFile',
};

/**
 * The `tar` package reads the same archive beside our own reader; what the two see differently is refused. It
 * is not given what it is known to misread: values of pax records that are no text, which a container's user
 * sets at will as xattrs, and the blocks that continue old sparse headers.
 */
export class SecondReader {
  readonly #parser = new Parser({ strict: true, maxMetaEntrySize: maxMetaSize });
  #entry: ReadEntry | undefined;
  #error: unknown;

  constructor() {
    const found = (entry: ReadEntry) => {
      this.#entry = entry;
    };
    this.#parser.on('error', (error: unknown) => {
      this.#error = error;
    });
    this.#parser.on('ignoredEntry', found);
    this.#parser.on('entry', (entry: ReadEntry) => {
      found(entry);
      entry.resume();
    });
  }

  member(member: TarMember): void {
    for (const meta of member.metas) {
      // The most frequent ones, with times and xattrs, cost half of all the time and change nothing.
      if (meta.header.type !== 'x' || meta.records.some(isShared)) this.global(meta);
    }
    const entry = this.#header(member.header.block);
    const same =
      entry !== undefined &&
      entry.type === typeOf(member) &&
      entry.path === seen(member, 'path', member.headerName) &&
      entry.size === member.size &&
      (!/Link/.test(entry.type) || entry.linkpath === seen(member, 'linkpath', member.linkName));
    if (!same) throw new TarFault('two programs do not read the same in its headers');
  }

  /** The parser tells at once what it found. */
  #header(block: Buffer): ReadEntry | undefined {
    this.#entry = undefined;
    this.body(block);
    return this.#entry;
  }

  global({ header, body, records }: TarMeta): void {
    this.body(header.block);
    const plain = Buffer.from(body);
    for (const { key, value, start, end } of records) {
      if (!isShared({ key })) plain.fill('x', start, end);
      else if (key !== 'size') plain.write(masked(value), end - value.length);
    }
    this.body(plain);
  }

  body(chunk: Buffer): void {
    this.#parser.write(chunk);
    if (this.#error === undefined) return;
    throw new TarFault(`two programs do not read it the same (${messageOf(this.#error)})`);
  }
}

/** What both readers go by. */
function isShared({ key }: Pick<PaxRecord, 'key'>): boolean {
  return key === 'path' || key === 'linkpath' || key === 'size';
}

/** How the package shows a name of this member. */
function seen({ metas }: TarMember, key: string, name: Buffer): string {
  const pax = metas.some(({ records }) => records.some((record) => record.key === key));
  return pax ? masked(name) : name.toString('utf8');
}

/** The package takes line ends for ends of records, and counts lengths after decoding. */
function masked(value: Buffer): string {
  return value.toString('latin1').replace(/[^ -~]/g, '?');
}

function typeOf({ header, headerName }: TarMember): string | undefined {
  if (header.type !== '0' && header.type !== '\0') return typeNames[header.type];
  return headerName.at(-1) === 0x2f ? 'Directory' : 'File';
}
