import { readdir, readFile } from 'node:fs/promises';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type { PveProgram } from '../../fixtures/pve/pve-node.ts';
import { type Archive, type Bench, efiDisk, MiB, startBench } from './support/bench.ts';
import {
  dirtyAll,
  expectArchives,
  expectBackup,
  expectQuiet,
  inData,
  strikeAt,
} from './support/faults.ts';
import { hostPids } from './support/leftovers.ts';

const size = 24 * MiB;
const disks = [{ device: 'drive-scsi0', size, seed: 1 }, efiDisk];
/** Three seconds for the whole disk. */
const slowly = { storage: 'vault', bwlimit: 8 * 1024 };

let bench: Bench;
let archives: Archive[];

beforeAll(async () => {
  const storages = { vault: { 'bridge-dir-mechanism': 'file-handle' } };
  bench = await startBench({ disks, storages });
  archives = [await expectBackup(bench)];
});
beforeEach(async () => {
  await dirtyAll(bench.vm, 'drive-scsi0', size);
  await bench.nextSecond();
});
afterAll(() => bench.close());

const kill = (pid: number | undefined, signal: NodeJS.Signals) => {
  if (pid === undefined) throw new Error('nothing to kill');
  process.kill(pid, signal);
};
const group = ({ pid }: PveProgram) => pid && -pid;

/** The nbdfuse that shows a device of this node. */
async function nbdfuseOf(device: string): Promise<number | undefined> {
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    const [program, , , path = ''] = line.split('\0');
    const isOurs = path.startsWith(`${bench.node.root}/`) && path.endsWith(`/${device}`);
    if (program === 'nbdfuse' && isOurs) return Number(pid);
  }
  return undefined;
}

/** Nothing is left, and the next backup is right and incremental: a failed one keeps its bitmap [B15]. */
async function expectNext(): Promise<void> {
  await expectQuiet(bench);
  await expectArchives(bench, archives);
  const next = await expectBackup(bench);
  expect(next.log).toContain('drive-scsi0: incremental since');
  archives.push(next);
}

test.each([
  ['SIGTERM to vzdump', 'SIGTERM', (vzdump: PveProgram) => vzdump.pid],
  ['SIGTERM to its group, nbdfuse included', 'SIGTERM', group],
] as const)('A3: %s ends the job with PVE’s own words', async (_, signal, target) => {
  const vzdump = bench.node.vzdump([100, 101], slowly);
  const struck = await strikeAt(vzdump, inData, () => kill(target(vzdump), signal));
  bench.archivesIn(struck.log);
  expect(struck.log).toMatch(/^TASK ERROR: interrupted by signal$/m);
  expect(struck.log).not.toContain('VM 101');
  await expectNext();
});

test.each([
  ['vzdump alone', (vzdump: PveProgram) => vzdump.pid],
  ['its process group', group],
] as const)('A6: kill -9 of %s ends host and nbdfuse as well', async (_, target) => {
  const vzdump = bench.node.vzdump([100], slowly);
  const struck = await strikeAt(vzdump, inData, () => kill(target(vzdump), 'SIGKILL'));
  bench.archivesIn(struck.log);
  expect(struck.exitCode).toBeUndefined();
  await expectNext();
});

test('kill -9 of nbdfuse fails the backup and names it', async () => {
  const vzdump = bench.node.vzdump([100], slowly);
  const strike = async () => kill(await nbdfuseOf('drive-scsi0'), 'SIGKILL');
  const struck = await strikeAt(vzdump, inData, strike);
  bench.archivesIn(struck.log);
  expect(struck.log).toMatch(/Backup of VM 100 failed - .*nbdfuse, which serves it as a file, has/);
  await expectNext();
});

test('A3: kill -9 of the host fails the backup', async () => {
  const vzdump = bench.node.vzdump([100], slowly);
  const strike = async () => kill((await hostPids(bench.node.root))[0], 'SIGKILL');
  const struck = await strikeAt(vzdump, inData, strike);
  bench.archivesIn(struck.log);
  expect(struck.log).toMatch(/Backup of VM 100 failed - the backup host .* has ended unexpectedly/);
  await expectNext();
});
