import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { PveProgram } from '../../fixtures/pve/pve-node.ts';
import { VirtualMachine } from '../../fixtures/qemu/virtual-machine.ts';
import { type Archive, type Bench, efiDisk, MiB, startBench } from './support/bench.ts';
import {
  dirtyAll,
  expectArchives,
  expectBackup,
  expectQuiet,
  inData,
  listed,
  strikeAt,
} from './support/faults.ts';
import { guestConfig } from './support/guest.ts';
import { hostPids } from './support/leftovers.ts';

const size = 24 * MiB;
const disks = [{ device: 'drive-scsi0', size, seed: 1 }, efiDisk];
const load = { writesPerSecond: 100, targets: [{ device: 'drive-scsi0' }] };
/** Three seconds for the whole disk. */
const slowly = { storage: 'vault', bwlimit: 8 * 1024 };

const kill = (pid: number | undefined, signal: NodeJS.Signals) => {
  if (pid === undefined) throw new Error('nothing to kill');
  process.kill(pid, signal);
};
const group = ({ pid }: PveProgram) => pid && -pid;

let bench: Bench;
let archives: Archive[];

beforeAll(async () => {
  bench = await startBench({ disks, load });
  await bench.vm.startLoad(load);
  archives = [await expectBackup(bench)];
});
beforeEach(async () => {
  await dirtyAll(bench.vm, 'drive-scsi0', size);
  await bench.nextSecond();
});
afterAll(() => bench.close());

/** The next backup is right and incremental: a failed one keeps its bitmap. */
async function expectNext(): Promise<void> {
  const next = await expectBackup(bench);
  expect(next.log).toContain('drive-scsi0: incremental since');
  archives = [next];
  for (const volid of await listed(bench.node)) {
    if (volid !== next.volid) await bench.node.pvesm(['free', volid]);
  }
}

describe('a signal in the middle of a backup', () => {
  test.each([
    ['SIGTERM to vzdump', 'SIGTERM', (vzdump: PveProgram) => vzdump.pid],
    ['SIGTERM to its group, as the API stops a task', 'SIGTERM', group],
    ['SIGINT to vzdump', 'SIGINT', (vzdump: PveProgram) => vzdump.pid],
  ] as const)('A3, B15: %s ends the job with PVE’s own words', async (_, signal, target) => {
    await bench.node.forgetCalls();
    const vzdump = bench.node.vzdump([100, 101], slowly);
    const struck = await strikeAt(vzdump, inData, () => kill(target(vzdump), signal));
    bench.archivesIn(struck.log);
    expect(struck.seconds).toBeLessThan(4.5);
    expect(struck.log).toMatch(/^TASK ERROR: interrupted by signal$/m);
    expect(struck.log).not.toContain('VM 101');
    const call = (await bench.node.calls()).find((each) => each.call === 'provider.backup_vm');
    expect(call?.result).toBe('DIED: PV(interrupted by signal\n)');
    await expectQuiet(bench);
    await expectArchives(bench, archives);
    await expectNext();
  });

  test.each([
    ['vzdump alone', (vzdump: PveProgram) => vzdump.pid],
    ['its process group', group],
  ] as const)('A6: kill -9 of %s: nothing is left, nothing half is listed', async (_, target) => {
    const vzdump = bench.node.vzdump([100], slowly);
    const struck = await strikeAt(vzdump, inData, () => kill(target(vzdump), 'SIGKILL'));
    bench.archivesIn(struck.log);
    expect(struck.exitCode).toBeUndefined();
    expect(struck.log).not.toContain('Finished');
    await expectQuiet(bench);
    await expectArchives(bench, archives);
    await expectNext();
  });
});

test('A3: kill -9 of the host fails one guest; the next of the job is backed up', async () => {
  const { node } = bench;
  const others = [{ device: 'drive-scsi0', size: 6 * MiB, seed: 3 }];
  await node.addVm(101, guestConfig(101, others));
  const spec = { root: node.root, vmid: 101, disks: others, keepInstantCopy: true };
  const other = await VirtualMachine.start(spec);
  try {
    const vzdump = node.vzdump([100, 101], slowly);
    const struck = await strikeAt(vzdump, inData, async () =>
      kill((await hostPids(node.root))[0], 'SIGKILL'),
    );
    const [, volid = ''] = bench.archivesIn(struck.log);
    expect(struck.log).toMatch(
      /ERROR: Backup of VM 100 failed - the backup host of storage 'vault' has ended unexpectedly, see \S+\/vault.log$/m,
    );
    expect(struck.log).toContain('Finished Backup of VM 101');
    expect(struck.log).toMatch(/^TASK ERROR: job errors$/m);
    await expectQuiet(bench, { pids: [other.pid] });
    const sha256 = new Map([['drive-scsi0', await other.snapshotSha256('drive-scsi0')]]);
    await expectArchives(bench, [...archives, { volid, sha256 }]);
  } finally {
    await other.stop();
  }
  await expectNext();
});

test('E5: a guest that is killed ends its backup; the one after its restart is full', async () => {
  const vzdump = bench.node.vzdump([100], slowly);
  const struck = await strikeAt(vzdump, inData, () => bench.vm.kill9());
  bench.archivesIn(struck.log);
  expect(struck.exitCode).not.toBe(0);
  expect(struck.log).toMatch(/Backup of VM 100 failed - .*NBD/);
  await bench.vm.restart();
  await expectQuiet(bench);
  await expectArchives(bench, archives);
  const next = await expectBackup(bench);
  expect(next.log).toContain('drive-scsi0: full');
});
