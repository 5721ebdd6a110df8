import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Bench, efiDisk, KiB, MiB, startBench } from './support/bench.ts';

const size = 48 * MiB;
const rate = 4 * MiB;
let bench: Bench;

beforeAll(async () => {
  bench = await startBench({ disks: [{ device: 'drive-scsi0', size }, efiDisk] });
  await bench.vm.write('drive-scsi0', 0, { pattern: 0x11, length: size });
});
afterAll(() => bench.close());

interface Line {
  readonly at: number;
  readonly msg: string;
  readonly read?: number;
}

/** The storage's log, written when things happen. */
async function hostLog(): Promise<Line[]> {
  const path = join(bench.node.root, 'var/log/pve-backup-bridge/vault.log');
  const lines = (await readFile(path, 'utf8')).trimEnd().split('\n');
  // the host says in plain text why it ends
  const own = lines.filter((line) => line.startsWith('{'));
  return own.map((line) => {
    const { time, ...rest } = JSON.parse(line) as Line & { time: string };
    return { ...rest, at: Date.parse(time) };
  });
}

test('B8: the source is read at the limit within 5 %; progress comes every 3 s at most', async () => {
  const backup = await bench.backUp({ bwlimit: rate / KiB });
  expect(backup.exitCode, backup.log).toBe(0);
  const lines = await hostLog();
  // the reads begin when all disks are announced, and end with the totals
  const start = lines.findLast(({ msg }) => msg.endsWith(' to back up'))?.at ?? Number.NaN;
  const end = lines.findLast(({ msg }) => msg === 'copied');
  const seconds = ((end?.at ?? Number.NaN) - start) / 1000;
  expect(end?.read).toBeGreaterThanOrEqual(size);
  expect(seconds).toBeGreaterThan(10);
  const share = (end?.read ?? 0) / seconds / rate;
  expect(share, `${seconds} s\n${backup.log}`).toBeGreaterThan(0.95);
  expect(share, `${seconds} s\n${backup.log}`).toBeLessThan(1.05);

  const progress = lines.filter(({ msg }) => /^ *\d+% \(/.test(msg));
  expect(progress.length, backup.log).toBeGreaterThanOrEqual(3);
  expect(progress.at(-1)?.msg).toMatch(/^100% \(48\.5 MiB of 48\.5 MiB\)/);
  const gaps = progress.slice(1, -1).map(({ at }, index) => at - (progress[index]?.at ?? 0));
  for (const gap of gaps) expect(gap).toBeGreaterThan(2500);
});
