import { describe, expect, test } from 'vitest';
import { ContainerProgress } from '../../src/toolbox/container-progress.ts';
import { LogLines } from './support/log.ts';

const mib = 1024 * 1024;

function start() {
  const log = new LogLines();
  let time = 5000;
  const progress = new ContainerProgress({ log, now: () => time });
  const step = (bytes: number, entries: number, written?: number) => {
    time += 3000;
    progress.update({ bytes, entries, ...(written !== undefined && { written }) });
  };
  return { log, progress, step };
}

describe("a container's progress", () => {
  test('the lines are in the words of vzdump', () => {
    const { log, progress, step } = start();
    step(100 * mib, 1000, 30 * mib);
    progress.expect({ bytes: 1024 * mib, entries: 20_000 });
    step(256 * mib, 5000, 90 * mib);
    step(1030 * mib, 20_500, 300 * mib);
    progress.finish({ bytes: 1032 * mib, entries: 20_501, written: 301 * mib });
    expect(log.lines).toEqual([
      '100.0 MiB, 1000 files in 3s, read: 33.3 MiB/s, write: 10.0 MiB/s',
      ' 25% (256.0 MiB of 1.0 GiB, 5000 of 20000 files) in 6s, read: 52.0 MiB/s, write: 20.0 MiB/s',
      ' 99% (1.0 GiB of 1.0 GiB, 20500 of 20500 files) in 9s, read: 258.0 MiB/s, write: 70.0 MiB/s',
      'saved 731.00 MiB (70%), wrote 301.00 MiB',
      'transferred 1.01 GiB, 20501 files in 9 seconds (114.7 MiB/s)',
    ]);
  });

  test('a line for news, else each minute', () => {
    const { log, progress, step } = start();
    progress.expect({ bytes: 1e9, entries: 10 });
    for (let i = 0; i < 41; i++) step(1000, 5);
    expect(log.lines).toHaveLength(3);
  });

  test('without a total, ever fewer lines', () => {
    const { log, step } = start();
    for (let i = 1; i <= 1000; i++) step(i * mib, i);
    expect(log.lines.length).toBeGreaterThan(40);
    expect(log.lines.length).toBeLessThan(120);
  });

  test('nothing was there to do', () => {
    const { log, progress } = start();
    progress.finish({ bytes: 0, entries: 0, written: 20 });
    expect(log.lines).toEqual(['transferred 0 B, 0 files in 0 seconds (0 B/s)']);
  });
});
