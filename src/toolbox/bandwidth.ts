import { sleep } from './abort.ts';

/** Where a limiter takes its time from; tests inject one. */
export interface Clock {
  /** Milliseconds, never going back. */
  now(): number;
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

const realClock: Clock = { now: () => performance.now(), sleep };

/** Lost time that may be made up for: late timers must not lower the rate. */
const burstMs = 200;
const step = 4096;

/** A token bucket in bytes per second, shared by all volumes of a backup [B7]. */
export class BandwidthLimiter {
  /** Ask for no more than this at once, or a low limit is kept only on average over minutes. */
  readonly maxRequest: number;
  readonly #bytesPerMs: number;
  readonly #clock: Clock;
  #next = Number.NEGATIVE_INFINITY;

  constructor(bytesPerSecond: number, clock: Clock = realClock) {
    if (!(bytesPerSecond > 0)) throw new RangeError('a bandwidth limit must be above 0');
    this.#bytesPerMs = bytesPerSecond / 1000;
    this.#clock = clock;
    this.maxRequest = Math.max(step, Math.floor(bytesPerSecond / 8 / step) * step);
  }

  /** Resolves when `bytes` may be read; takers are served in the order of their calls. */
  async take(bytes: number, signal?: AbortSignal): Promise<void> {
    const now = this.#clock.now();
    const start =
      this.#next === Number.NEGATIVE_INFINITY ? now : Math.max(this.#next, now - burstMs);
    this.#next = start + bytes / this.#bytesPerMs;
    if (start > now) await this.#clock.sleep(start - now, signal);
  }
}
