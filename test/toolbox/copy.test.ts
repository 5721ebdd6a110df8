import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { BackupError, cancelled } from '../../src/protocol/errors.ts';
import type { DataExtent } from '../../src/sdk/provider.ts';
import { BandwidthLimiter } from '../../src/toolbox/bandwidth.ts';
import { copyVolume } from '../../src/toolbox/copy.ts';
import { Progress } from '../../src/toolbox/progress.ts';
import { anyExtents, expand } from './support/extents.ts';
import { LogLines } from './support/log.ts';
import { MemorySink, MemorySource, turn } from './support/memory-volume.ts';

const all = (size: number): DataExtent[] => [{ offset: 0, length: size, zero: false }];
const never = () => new Promise<never>(() => {});
const live = () => new AbortController().signal;

/** Some data, some zeroes, and zeroes wherever the extents say so. */
function fill(size: number, extents: readonly DataExtent[]): Buffer {
  const data = Buffer.alloc(size);
  for (let i = 0; i < size; i++) data[i] = Math.floor(i / 7) % 3 === 0 ? 0 : i % 251;
  for (const { offset, length, zero } of extents) if (zero) data.fill(0, offset, offset + length);
  return data;
}

describe('copy', () => {
  test('the sink gets just the bytes of the extents, block by block, and only they are discarded', async () => {
    await fc.assert(
      fc.asyncProperty(
        anyExtents,
        fc.integer({ min: 1, max: 64 }),
        fc.integer({ min: 1, max: 5 }),
        async (extents, blockSize, concurrency) => {
          const bytes = expand(extents);
          const size = Math.max(0, ...bytes.keys()) + 1;
          const data = fill(size, extents);
          let sink: MemorySink;
          const source = new MemorySource(data, extents, {
            discard: async (offset, length) => {
              // Accepted before it is let go.
              for (let at = offset; at < offset + length; at++)
                expect(sink.bytes[at]).toBe(data[at]);
            },
          });
          sink = new MemorySink(size);
          const stats = await copyVolume(source, sink, { blockSize, concurrency, signal: live() });
          for (let at = 0; at < size; at++) {
            expect(sink.bytes[at]).toBe(bytes.has(at) ? data[at] : undefined);
            expect(source.discarded[at]).toBe(bytes.has(at));
          }
          for (const { offset, length } of sink.calls) {
            const block = Math.floor(offset / blockSize);
            expect(Math.floor((offset + length - 1) / blockSize)).toBe(block);
          }
          expect(stats.size).toBe(size);
          expect(stats.dirty).toBe(bytes.size);
          expect(stats.zero + stats.written).toBe(bytes.size);
          // The zeroes that are known need no read, but for those that share a block with data.
          const zeroes = [...bytes.values()].filter((zero) => zero).length;
          expect(stats.read).toBeGreaterThanOrEqual(bytes.size - zeroes);
          if (zeroes === 0) expect(stats.read).toBe(stats.dirty);
        },
      ),
      { numRuns: 60 },
    );
  });

  test('no more blocks than `concurrency` are in memory', async () => {
    let inFlight = 0;
    let most = 0;
    const source = new MemorySource(Buffer.alloc(1000, 1), all(1000), {
      read: async (_, length) => {
        most = Math.max(most, ++inFlight);
        await turn();
        return Buffer.alloc(length, 1);
      },
      discard: async () => void inFlight--,
    });
    await copyVolume(source, new MemorySink(1000), {
      blockSize: 10,
      concurrency: 3,
      signal: live(),
    });
    expect(most).toBe(3);
  });

  test('zeroes are found in what is read, and are not written', async () => {
    const data = Buffer.alloc(40);
    data[25] = 1;
    const sink = new MemorySink(40);
    const source = new MemorySource(data, all(40));
    const stats = await copyVolume(source, sink, { blockSize: 10, concurrency: 1, signal: live() });
    expect(stats).toEqual({ size: 40, dirty: 40, read: 40, zero: 30, written: 10 });
    expect(sink.calls.filter(({ zero }) => !zero)).toEqual([
      { offset: 20, length: 10, zero: false },
    ]);
  });

  test('zeroes that are known are discarded in large runs', async () => {
    const discards: number[][] = [];
    const extents = [{ offset: 0, length: 1025, zero: true }];
    const source = new MemorySource(Buffer.alloc(1025), extents, {
      discard: async (offset, length) => void discards.push([offset, length]),
    });
    await copyVolume(source, new MemorySink(1025), {
      blockSize: 2,
      concurrency: 1,
      signal: live(),
    });
    expect(discards).toEqual([
      [0, 512],
      [512, 512],
      [1024, 1],
    ]);
  });

  test('progress counts what was accepted', async () => {
    const log = new LogLines();
    const progress = new Progress({ total: 40, log });
    const source = new MemorySource(Buffer.from(`${'a'.repeat(20)}${'\0'.repeat(20)}`), all(40));
    const options = { blockSize: 10, concurrency: 2, progress, signal: live() };
    await copyVolume(source, new MemorySink(40), options);
    progress.finish();
    expect(log.lines[0]).toMatch(/^100% \(40 B of 40 B\)/);
    expect(log.lines[1]).toBe('backup is sparse: 20 B (50%) total zero data');
  });

  test('B7: a limit holds for the bytes read, and cuts large blocks', async () => {
    let now = 0;
    const sleep = async (ms: number) => {
      now += ms;
    };
    const clock = { now: () => now, sleep };
    const limiter = new BandwidthLimiter(64 * 1024, clock);
    const size = 256 * 1024;
    const lengths: number[] = [];
    const data = fill(size, []);
    const source = new MemorySource(data, all(size), {
      read: async (offset, length) => {
        lengths.push(length);
        return Buffer.from(data.subarray(offset, offset + length));
      },
    });
    const sink = new MemorySink(size);
    await copyVolume(source, sink, { blockSize: size, concurrency: 1, limiter, signal: live() });
    expect(Math.max(...lengths)).toBe(limiter.maxRequest);
    expect(now / 1000).toBeGreaterThan(3.8);
    expect(now / 1000).toBeLessThan(4.2);
    expect(Buffer.from(sink.bytes as number[]).equals(data)).toBe(true);
  });

  describe('faults', () => {
    const options = (signal: AbortSignal = live()) => ({ blockSize: 10, concurrency: 4, signal });
    const source = () => new MemorySource(Buffer.alloc(1000, 1), all(1000));

    test('a sink that refuses a block: that error, nothing more is begun, the block is kept', async () => {
      const from = source();
      const sink = new MemorySink(1000, async (offset) => {
        await turn();
        if (offset === 200) throw new BackupError('the store is full');
      });
      await expect(copyVolume(from, sink, options())).rejects.toThrow('the store is full');
      expect(sink.calls.length).toBeLessThan(30);
      expect(from.discarded[205]).toBe(false);
      const calls = sink.calls.length;
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(sink.calls.length).toBe(calls);
    });

    test('only the first error is reported, and the others do not escape', async () => {
      const from = source();
      let count = 0;
      const sink = new MemorySink(1000, async (_, signal) => {
        if (++count === 4) throw new Error('first');
        await new Promise((_, reject) => {
          signal.addEventListener('abort', () => reject(new Error('because of the first')));
        });
      });
      await expect(copyVolume(from, sink, options())).rejects.toThrow(/^first$/);
    });

    test('an error in the middle of a run of zeroes: what was not accepted is kept', async () => {
      const extents = [
        { offset: 0, length: 500, zero: true },
        { offset: 500, length: 10, zero: false },
      ];
      const from = new MemorySource(Buffer.alloc(510).fill(1, 500), extents);
      const sink = new MemorySink(510, async (offset) => {
        if (offset === 500) throw new Error('the store is full');
        await new Promise((resolve) => setTimeout(resolve, 5));
      });
      await expect(copyVolume(from, sink, options())).rejects.toThrow('the store is full');
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(sink.bytes).toContain(undefined);
      expect(from.discarded).not.toContain(true);
    });

    test('a read that fails', async () => {
      const from = new MemorySource(Buffer.alloc(100), all(100), {
        read: async () => Promise.reject(new BackupError('cannot read 10 B')),
      });
      await expect(copyVolume(from, new MemorySink(100), options())).rejects.toThrow('cannot read');
    });

    test('a map that breaks off', async () => {
      const from = new MemorySource(Buffer.alloc(100), [], {
        // biome-ignore lint/correctness/useYield: that is the fault
        extents: async function* () {
          throw new BackupError('cannot ask for the map');
        },
      });
      await expect(copyVolume(from, new MemorySink(100), options())).rejects.toThrow('the map');
    });

    test('a discard that fails', async () => {
      const from = new MemorySource(Buffer.alloc(100, 1), all(100), {
        discard: async () => Promise.reject(new Error('lost the connection')),
      });
      await expect(copyVolume(from, new MemorySink(100), options())).rejects.toThrow('lost');
    });

    test.each([
      { part: 'sink', before: never, traits: {} },
      { part: 'read', before: turn, traits: { read: never } },
      { part: 'discard', before: turn, traits: { discard: never } },
      {
        part: 'map',
        before: turn,
        traits: {
          extents: async function* (): AsyncGenerator<DataExtent> {
            yield* all(10);
            await never();
          },
        },
      },
    ])('A3: cancelled within a second though the $part hangs', async ({ before, traits }) => {
      const from = new MemorySource(Buffer.alloc(1000, 1), all(1000), traits);
      const controller = new AbortController();
      const copy = copyVolume(from, new MemorySink(1000, before), options(controller.signal));
      setTimeout(() => controller.abort(cancelled('interrupted by signal')), 20);
      const start = Date.now();
      await expect(copy).rejects.toThrow(/^interrupted by signal$/);
      expect(Date.now() - start).toBeLessThan(1000);
    });

    test('cancelled before it starts, it does nothing', async () => {
      const sink = new MemorySink(1000);
      const copy = copyVolume(source(), sink, options(AbortSignal.abort()));
      await expect(copy).rejects.toThrow('cancelled');
      expect(sink.calls).toEqual([]);
    });

    test('the signal of the job is left without listeners', async () => {
      const { signal } = new AbortController();
      let listeners = 0;
      const add = signal.addEventListener.bind(signal);
      const remove = signal.removeEventListener.bind(signal);
      signal.addEventListener = (...args: Parameters<typeof add>) => {
        listeners++;
        add(...args);
      };
      signal.removeEventListener = (...args: Parameters<typeof remove>) => {
        listeners--;
        remove(...args);
      };
      await copyVolume(source(), new MemorySink(1000), options(signal));
      expect(listeners).toBe(0);
    });
  });
});
