import { describe, expect, test } from 'vitest';
import { BandwidthLimiter, type Clock } from '../../src/toolbox/bandwidth.ts';

const mib = 1024 * 1024;

/** Time that passes only in `sleep`, each time up to `late` too long, as real timers do. */
class SlowClock implements Clock {
  #now = 1000;
  readonly #late: number;

  constructor(late: number) {
    this.#late = late;
  }

  now(): number {
    return this.#now;
  }

  sleep(ms: number): Promise<void> {
    this.#now += ms + this.#late;
    return Promise.resolve();
  }
}

describe('bandwidth limit', () => {
  test.each([
    { rate: 100 * 1024, late: 0 },
    { rate: mib, late: 5 },
    { rate: 50 * mib, late: 15 },
    { rate: 700 * mib, late: 3 },
  ])('B7: $rate bytes/s within 5 % over 10 s, timers $late ms late', async ({ rate, late }) => {
    const clock = new SlowClock(late);
    const limiter = new BandwidthLimiter(rate, clock);
    const request = Math.min(limiter.maxRequest, 4 * mib);
    const start = clock.now();
    let bytes = 0;
    for (;;) {
      await limiter.take(request);
      if (clock.now() - start >= 10_000) break;
      bytes += request;
    }
    expect(bytes / (rate * 10)).toBeGreaterThan(0.95);
    expect(bytes / (rate * 10)).toBeLessThan(1.05);
  });

  test('B7: a reader that stalls now and then still gets what the limit allows', async () => {
    const clock = new SlowClock(1);
    const limiter = new BandwidthLimiter(50 * mib, clock);
    const start = clock.now();
    let bytes = 0;
    for (let i = 1; clock.now() - start < 10_000; i++) {
      await limiter.take(4 * mib);
      bytes += 4 * mib;
      // Longer than the 80 ms that the block lasts.
      if (i % 5 === 0) await clock.sleep(200);
    }
    expect(bytes / (500 * mib)).toBeGreaterThan(0.95);
    expect(bytes / (500 * mib)).toBeLessThan(1.05);
  });

  test('idle time is no credit beyond a moment', async () => {
    const clock = new SlowClock(0);
    const limiter = new BandwidthLimiter(mib, clock);
    await limiter.take(64 * 1024);
    await clock.sleep(60_000);
    const start = clock.now();
    for (let i = 0; i < 16; i++) await limiter.take(64 * 1024);
    expect(clock.now() - start).toBeGreaterThanOrEqual(700);
  });

  test('several takers share one limit, by the real clock', async () => {
    const limiter = new BandwidthLimiter(8 * mib);
    const start = performance.now();
    const taker = async () => {
      for (let i = 0; i < 4; i++) await limiter.take(mib);
    };
    await Promise.all([taker(), taker()]);
    const seconds = (performance.now() - start) / 1000;
    // The first MiB comes at once.
    expect(seconds).toBeGreaterThan(0.82);
    expect(seconds).toBeLessThan(1.5);
  });

  test('waiting ends when it is cancelled', async () => {
    const limiter = new BandwidthLimiter(1);
    await limiter.take(100);
    const controller = new AbortController();
    const waiting = limiter.take(100, controller.signal);
    controller.abort();
    await expect(waiting).rejects.toThrow('cancelled');
  });

  test('no limit is not a limit of 0', () => {
    expect(() => new BandwidthLimiter(0)).toThrow(RangeError);
    expect(() => new BandwidthLimiter(Number.NaN)).toThrow(RangeError);
  });
});
