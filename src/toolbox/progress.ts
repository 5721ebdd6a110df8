import type { Logger } from '../sdk/provider.ts';
import { formatBytes, formatRate, formatShare } from './bytes.ts';

/** What a step adds, in bytes. */
export interface ProgressStep {
  /** Backed up, whether read or known to be zero. */
  readonly done?: number;
  readonly read?: number;
  readonly written?: number;
  readonly zero?: number;
}

const intervalMs = 3000;
/** A percent of a large disk may take minutes: a sign of life then. */
const silenceMs = 60_000;

/** The progress lines of one backup in the task log, in vzdump's words; shared by its volumes. */
export class Progress {
  readonly #total: number;
  readonly #log: Logger;
  readonly #now: () => number;
  readonly #start: number;
  readonly #sum = { done: 0, read: 0, written: 0, zero: 0 };
  #last: { at: number; percent: number; read: number; written: number };

  /** `total` is what has to be backed up, in bytes: the dirty extents, or everything. */
  constructor(options: { total: number; log: Logger; now?: () => number }) {
    this.#total = options.total;
    this.#log = options.log;
    this.#now = options.now ?? (() => performance.now());
    this.#start = this.#now();
    this.#last = { at: this.#start, percent: -1, read: 0, written: 0 };
  }

  add({ done = 0, read = 0, written = 0, zero = 0 }: ProgressStep): void {
    this.#sum.done += done;
    this.#sum.read += read;
    this.#sum.written += written;
    this.#sum.zero += zero;
    const now = this.#now();
    const waited = now - this.#last.at;
    const isNews = this.#percent() !== this.#last.percent || waited >= silenceMs;
    if (waited >= intervalMs && isNews) this.#line(now);
  }

  /**
   * The totals. `size` is that of all disks: what was not backed up was reused from the archive before.
   * `written` is what the store took, if the sink did not count it.
   */
  finish(totals: { size?: number; written?: number } = {}): void {
    const now = this.#now();
    if (this.#percent() !== this.#last.percent) this.#line(now);
    const { done, read, zero } = this.#sum;
    const written = totals.written ?? this.#sum.written;
    const size = totals.size ?? done;
    this.#log.debug('copied', { size, dirty: done, read, zero, written });
    if (zero > 0) this.#log.info(`backup is sparse: ${formatShare(zero, done)} total zero data`);
    if (size > done) {
      this.#log.info(`backup was done incrementally, reused ${formatShare(size - done, size)}`);
    }
    if (done > written) {
      this.#log.info(
        `saved ${formatShare(done - written, done)}, wrote ${formatBytes(written, 2)}`,
      );
    }
    const seconds = (now - this.#start) / 1000;
    this.#log.info(
      `transferred ${formatBytes(done, 2)} in ${Math.round(seconds)} seconds (${formatRate(done, seconds)})`,
    );
  }

  #percent(): number {
    return this.#total === 0 ? 100 : Math.floor((this.#sum.done / this.#total) * 100);
  }

  #line(now: number): void {
    const { done, read, written } = this.#sum;
    const seconds = (now - this.#last.at) / 1000;
    this.#log.info(
      `${String(this.#percent()).padStart(3)}% (${formatBytes(done)} of ${formatBytes(this.#total)})` +
        ` in ${Math.round((now - this.#start) / 1000)}s` +
        `, read: ${formatRate(read - this.#last.read, seconds)}` +
        `, write: ${formatRate(written - this.#last.written, seconds)}`,
    );
    this.#last = { at: now, percent: this.#percent(), read, written };
  }
}
