import type { Logger } from '../sdk/provider.ts';
import { formatBytes, formatRate, formatShare } from './bytes.ts';
import type { TreeTotals } from './container-scan.ts';

/** What is done so far. */
export interface TarCounts extends TreeTotals {
  /** Bytes that came out of the filter; absent if there is none. */
  readonly written?: number;
}

/** While the total is unknown, a line for each tenth more. */
const growth = 1.1;
const silenceMs = 60_000;

/** The progress lines of a container's backup in the task log, in vzdump's words. */
export class ContainerProgress {
  readonly #log: Logger;
  readonly #now: () => number;
  readonly #start: number;
  #total: TreeTotals | undefined;
  #last: { at: number; percent: number | undefined; bytes: number; written: number };

  constructor(options: { log: Logger; now?: () => number }) {
    this.#log = options.log;
    this.#now = options.now ?? (() => performance.now());
    this.#start = this.#now();
    this.#last = { at: this.#start, percent: undefined, bytes: 0, written: 0 };
  }

  /** What there is to do: an estimate, since the container may go on living. */
  expect(total: TreeTotals): void {
    this.#total = total;
  }

  /** Called every few seconds; writes a line if there is something new to say. */
  update(counts: TarCounts): void {
    const now = this.#now();
    const percent = this.#percent(counts.bytes);
    const isNews =
      percent === undefined
        ? counts.bytes > this.#last.bytes * growth
        : percent !== this.#last.percent;
    if (!isNews && now - this.#last.at < silenceMs) return;
    const seconds = (now - this.#last.at) / 1000;
    const { bytes, written } = counts;
    const write =
      written === undefined ? '' : `, write: ${formatRate(written - this.#last.written, seconds)}`;
    this.#log.info(
      `${this.#amount(counts, percent)} in ${Math.round((now - this.#start) / 1000)}s` +
        `, read: ${formatRate(bytes - this.#last.bytes, seconds)}${write}`,
    );
    this.#last = { at: now, percent, bytes, written: written ?? 0 };
  }

  finish({ bytes, entries, written }: TarCounts): void {
    const seconds = (this.#now() - this.#start) / 1000;
    if (written !== undefined && written < bytes) {
      const saved = formatShare(bytes - written, bytes);
      this.#log.info(`saved ${saved}, wrote ${formatBytes(written, 2)}`);
    }
    this.#log.info(
      `transferred ${formatBytes(bytes, 2)}, ${entries} files` +
        ` in ${Math.round(seconds)} seconds (${formatRate(bytes, seconds)})`,
    );
  }

  /** Never 100 before the end, which an estimate does not know. */
  #percent(bytes: number): number | undefined {
    if (this.#total === undefined) return undefined;
    return Math.min(99, Math.floor((bytes / Math.max(this.#total.bytes, 1)) * 100));
  }

  #amount({ bytes, entries }: TarCounts, percent: number | undefined): string {
    if (this.#total === undefined) return `${formatBytes(bytes)}, ${entries} files`;
    const total = {
      bytes: Math.max(this.#total.bytes, bytes),
      entries: Math.max(this.#total.entries, entries),
    };
    return (
      `${String(percent).padStart(3)}% (${formatBytes(bytes)} of ${formatBytes(total.bytes)}` +
      `, ${entries} of ${total.entries} files)`
    );
  }
}
