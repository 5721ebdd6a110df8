import { describe, expect, test } from 'vitest';
import { formatBytes } from '../../src/toolbox/bytes.ts';
import { Progress } from '../../src/toolbox/progress.ts';
import { LogLines } from './support/log.ts';

const mib = 1024 * 1024;

function start(total: number) {
  const log = new LogLines();
  let time = 5000;
  const progress = new Progress({ total, log, now: () => time });
  const step = (seconds: number, bytes: number) => {
    time += seconds * 1000;
    progress.add({ done: bytes, read: bytes, written: bytes });
  };
  return { log, progress, step };
}

describe('progress', () => {
  test("the lines are vzdump's", () => {
    const { log, progress, step } = start(2048 * mib);
    step(3, 256 * mib);
    step(4, 1792 * mib);
    progress.finish();
    expect(log.lines).toEqual([
      ' 12% (256.0 MiB of 2.0 GiB) in 3s, read: 85.3 MiB/s, write: 85.3 MiB/s',
      '100% (2.0 GiB of 2.0 GiB) in 7s, read: 448.0 MiB/s, write: 448.0 MiB/s',
      'transferred 2.00 GiB in 7 seconds (292.6 MiB/s)',
    ]);
  });

  test('never more often than every 3 s', () => {
    const { log, step } = start(1000 * mib);
    for (let i = 0; i < 100; i++) step(0.1, 10 * mib);
    expect(log.lines).toHaveLength(3);
  });

  test('only when the percentage has changed', () => {
    const { log, step } = start(1000 * mib);
    for (let i = 0; i < 25; i++) step(3, mib);
    expect(log.lines.map((line) => line.slice(0, 4))).toEqual(['  0%', '  1%', '  2%']);
  });

  test('the totals name what was zero, reused and saved', () => {
    const { log, progress, step } = start(400 * mib);
    step(1, 300 * mib);
    progress.add({ done: 100 * mib, zero: 100 * mib });
    step(1, 0);
    progress.finish({ size: 1024 * mib, written: 100 * mib });
    expect(log.lines.slice(1)).toEqual([
      'backup is sparse: 100.00 MiB (25%) total zero data',
      'backup was done incrementally, reused 624.00 MiB (60%)',
      'saved 300.00 MiB (75%), wrote 100.00 MiB',
      'transferred 400.00 MiB in 2 seconds (200.0 MiB/s)',
    ]);
  });

  test('nothing to do is 100 %', () => {
    const { log, progress } = start(0);
    progress.finish();
    expect(log.lines).toEqual([
      '100% (0 B of 0 B) in 0s, read: 0 B/s, write: 0 B/s',
      'transferred 0 B in 0 seconds (0 B/s)',
    ]);
  });

  test.each([
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1.0 KiB'],
    [1536 * mib, '1.5 GiB'],
    [2 ** 50, '1.0 PiB'],
    [2 ** 60, '1024.0 PiB'],
  ])('%d bytes are %s', (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text);
  });
});
