import type { Readable } from 'node:stream';
import type { LastWords } from './lines.ts';

/** What GNU tar reports without failing: the file went on living while it was read. */
const change =
  /: (?:file changed as we read it|File shrank by \d+ bytes?; padding with zeros|File removed before we read it)$/;
/** A name of 4096 bytes, every one of them escaped, and the message. */
const maxLine = 20_000;
const maxErrors = 20;
const dot = '.'.charCodeAt(0);
const newline = '\n'.charCodeAt(0);

/**
 * Reads what `tar --verbose --totals` says on stderr while the archive goes to stdout. A member's line begins
 * with `.`, as its name does; tar escapes line breaks in names, so that none can forge a line.
 */
export class TarMessages implements LastWords {
  readonly #onChange: (text: string) => void;
  readonly #errors: string[] = [];
  #kept: Buffer[] = [];
  #length = 0;
  #entries = 0;
  #totalBytes: number | undefined;

  constructor(onChange: (text: string) => void) {
    this.#onChange = onChange;
  }

  /** Members written so far. */
  get entries(): number {
    return this.#entries;
  }

  /** Bytes written, once tar has said so at its end. */
  get totalBytes(): number | undefined {
    return this.#totalBytes;
  }

  read(stream: Readable): this {
    stream.on('data', (chunk: Buffer) => this.#feed(chunk));
    stream.on('end', () => this.#feed(Buffer.from('\n')));
    stream.on('error', () => undefined);
    return this;
  }

  last(): string | undefined {
    return this.#errors.at(-1);
  }

  all(): string {
    return this.#errors.join('\n');
  }

  #feed(chunk: Buffer): void {
    let start = 0;
    for (let end = chunk.indexOf(newline); end !== -1; end = chunk.indexOf(newline, start)) {
      this.#keep(chunk.subarray(start, end));
      this.#line();
      start = end + 1;
    }
    // A copy, since the rest would hold on to the whole chunk.
    this.#keep(Buffer.from(chunk.subarray(start)));
  }

  #keep(part: Buffer): void {
    if (part.length === 0 || this.#length >= maxLine) return;
    this.#kept.push(part);
    this.#length += part.length;
  }

  #line(): void {
    const first = this.#kept[0];
    if (first === undefined) return;
    if (first[0] === dot) this.#entries++;
    else this.#message(Buffer.concat(this.#kept).subarray(0, maxLine).toString());
    this.#kept = [];
    this.#length = 0;
  }

  #message(line: string): void {
    const total = /^Total bytes written: (\d+)/.exec(line)?.[1];
    if (total !== undefined) {
      this.#totalBytes = Number(total);
      return;
    }
    const text = line.replace(/^tar: /, '');
    if (change.test(text) || / Warning: /.test(text)) {
      this.#onChange(text);
    } else if (!/^(?:Exiting with failure status|Error is not recoverable)/.test(text)) {
      this.#errors.push(text);
      if (this.#errors.length > maxErrors) this.#errors.shift();
    }
  }
}
