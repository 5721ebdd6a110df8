import type { Logger } from '../../sdk/provider.ts';
import { formatBytes, formatRate } from '../../toolbox/bytes.ts';

const intervalMs = 3000;

/** The progress lines of the verification of one archive. */
export class VerifyProgress {
  readonly #total: number;
  readonly #log: Logger;
  readonly #start = performance.now();
  #last = { at: this.#start, percent: -1, read: 0 };
  #done = 0;
  #read = 0;

  /** `total` is the size of all its disks and of its tar, in bytes. */
  constructor(total: number, log: Logger) {
    this.#total = total;
    this.#log = log;
  }

  get read(): number {
    return this.#read;
  }

  get seconds(): number {
    return (performance.now() - this.#start) / 1000;
  }

  /** Bytes that are verified, and those of them that had to be read. */
  add(done: number, read: number): void {
    this.#done += done;
    this.#read += read;
    const now = performance.now();
    const percent = Math.floor((this.#done / Math.max(this.#total, 1)) * 100);
    const seconds = (now - this.#last.at) / 1000;
    if (seconds * 1000 < intervalMs || percent === this.#last.percent) return;
    const rate = formatRate(this.#read - this.#last.read, seconds);
    this.#log.info(
      `${String(percent).padStart(3)}% (${formatBytes(this.#done)} of ${formatBytes(this.#total)})` +
        ` in ${Math.round(this.seconds)}s, read: ${rate}`,
    );
    this.#last = { at: now, percent, read: this.#read };
  }
}
