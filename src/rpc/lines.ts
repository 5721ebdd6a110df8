import { maxMessageBytes } from '../protocol/version.ts';

const newline = 0x0a;

/** Cuts a byte stream into lines, wherever its chunks are cut. Throws on a line over the limit. */
export class LineSplitter {
  readonly #limit: number;
  #parts: Buffer[] = [];
  #pending = 0;

  constructor(limit = maxMessageBytes) {
    this.#limit = limit;
  }

  /** The lines that `chunk` completes, without their newline. */
  push(chunk: Buffer): string[] {
    const lines: string[] = [];
    let start = 0;
    for (let end = chunk.indexOf(newline); end !== -1; end = chunk.indexOf(newline, start)) {
      this.#keep(chunk.subarray(start, end));
      lines.push(Buffer.concat(this.#parts).toString('utf8'));
      this.#parts = [];
      this.#pending = 0;
      start = end + 1;
    }
    this.#keep(chunk.subarray(start));
    return lines;
  }

  #keep(part: Buffer): void {
    this.#pending += part.length;
    if (this.#pending > this.#limit) throw new Error(`a line is longer than ${this.#limit} bytes`);
    if (part.length > 0) this.#parts.push(part);
  }
}
