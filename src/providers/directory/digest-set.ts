/**
 * A set of SHA-256 digests in 12 to 24 bytes each, so that the sweep of a store with millions of chunks stays small:
 * open addressing over the first eight bytes. Two digests that agree in these count as one, which can only
 * make the sweep keep a chunk too many.
 */
export class DigestSet {
  #slots = new Uint32Array(2 * 1024);
  #count = 0;

  get size(): number {
    return this.#count;
  }

  add(digest: Buffer, offset = 0): void {
    const slot = this.#slot(digest.readUInt32LE(offset), digest.readUInt32LE(offset + 4));
    if (slot < 0) return;
    this.#put(slot, digest.readUInt32LE(offset), digest.readUInt32LE(offset + 4));
    if (++this.#count * 3 > this.#slots.length) this.#grow();
  }

  has(digest: Buffer, offset = 0): boolean {
    return this.#slot(digest.readUInt32LE(offset), digest.readUInt32LE(offset + 4)) < 0;
  }

  /** The free slot for a pair, or -1 if it is there; a pair of zeroes marks a free slot and is never stored. */
  #slot(low: number, high: number): number {
    if (low === 0 && high === 0) return -1;
    const mask = this.#slots.length / 2 - 1;
    for (let at = low & mask; ; at = (at + 1) & mask) {
      const [a, b] = [this.#slots[2 * at], this.#slots[2 * at + 1]];
      if (a === 0 && b === 0) return at;
      if (a === low && b === high) return -1;
    }
  }

  #put(slot: number, low: number, high: number): void {
    this.#slots[2 * slot] = low;
    this.#slots[2 * slot + 1] = high;
  }

  #grow(): void {
    const old = this.#slots;
    this.#slots = new Uint32Array(old.length * 2);
    for (let at = 0; at < old.length; at += 2) {
      const [low = 0, high = 0] = [old[at], old[at + 1]];
      if (low !== 0 || high !== 0) this.#put(this.#slot(low, high), low, high);
    }
  }
}
