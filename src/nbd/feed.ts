/** What a stream parser asks for: bytes in one piece, a buffer to be filled, or bytes to be skipped. */
export type Demand =
  | { readonly take: number }
  | { readonly fill: Uint8Array }
  | { readonly skip: number };

/**
 * A parser of a byte stream: it is resumed once its demand is met, with the bytes if it asked to `take`
 * them. They are a view that is good until the next `yield`. How the stream was cut never shows.
 */
export type StreamParser<R = never> = Generator<Demand, R, Buffer>;

const nothing = Buffer.alloc(0);

const sizeOf = (demand: Demand) =>
  'take' in demand ? demand.take : 'fill' in demand ? demand.fill.length : demand.skip;

/** Meets a parser's demands from whatever pieces arrive. Throws what the parser throws, and ends then. */
export class Feed<R = never> {
  readonly #parser: StreamParser<R>;
  #demand: Demand | undefined;
  /** How much of the demand has been met. */
  #got = 0;
  #gathered = nothing;

  constructor(parser: StreamParser<R>) {
    this.#parser = parser;
    this.#resume(nothing);
    this.push(nothing);
  }

  get ended(): boolean {
    return this.#demand === undefined;
  }

  /** Where the next bytes may be put directly, to be reported with `filled`; else they go to `push`. */
  get room(): Uint8Array | undefined {
    if (this.#demand === undefined || !('fill' in this.#demand)) return undefined;
    return this.#demand.fill.subarray(this.#got);
  }

  filled(count: number): void {
    this.#got += count;
    this.push(nothing);
  }

  /** Bytes behind the parser's end are ignored. */
  push(bytes: Buffer): void {
    let at = 0;
    for (let demand = this.#demand; demand !== undefined; demand = this.#demand) {
      const missing = sizeOf(demand) - this.#got;
      const piece = bytes.subarray(at, at + missing);
      if (piece.length === 0 && missing > 0) return;
      at += piece.length;
      if ('take' in demand && this.#got === 0 && piece.length === missing) {
        this.#resume(piece);
        continue;
      }
      if ('take' in demand) this.#gather(piece, demand.take);
      else if ('fill' in demand) demand.fill.set(piece, this.#got);
      this.#got += piece.length;
      if (piece.length < missing) return;
      this.#resume(this.#gathered);
    }
  }

  #gather(piece: Buffer, size: number): void {
    if (this.#got === 0) this.#gathered = Buffer.allocUnsafeSlow(size);
    this.#gathered.set(piece, this.#got);
  }

  #resume(bytes: Buffer): void {
    this.#demand = undefined;
    this.#got = 0;
    this.#gathered = nothing;
    const { done, value } = this.#parser.next(bytes);
    if (done !== true) this.#demand = value;
  }
}
