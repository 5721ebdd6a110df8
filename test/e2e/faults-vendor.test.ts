import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { sha256Of } from '../../fixtures/qemu/mixed-data.ts';
import { VirtualMachine } from '../../fixtures/qemu/virtual-machine.ts';
import { type Bench, MiB, startBench } from './support/bench.ts';
import { expectQuiet, listed, strikeAt } from './support/faults.ts';
import { guestConfig } from './support/guest.ts';
import { VendorInstall } from './support/vendor.ts';

const disks = [{ device: 'drive-scsi0', size: 4 * MiB, seed: 1 }];
let vendor: VendorInstall;
let bench: Bench;
let other: VirtualMachine;
let count = 0;

beforeAll(async () => {
  vendor = await VendorInstall.create();
  bench = await startBench({ disks, node: vendor.nodeOptions });
  const { root } = bench.node;
  await bench.node.addVm(101, guestConfig(101, disks));
  other = await VirtualMachine.start({ root, vmid: 101, disks, keepInstantCopy: true });
});
afterAll(async () => {
  await other.stop();
  await bench.close();
  await vendor.remove();
});

/** A storage whose provider misbehaves. */
async function addStorage(fault: string): Promise<{ storage: string; path: string }> {
  const storage = `sample${++count}`;
  const path = join(bench.node.root, storage);
  await mkdir(path);
  await bench.node.addStorage(storage, 'sample', {
    path,
    content: 'backup',
    'sample-fault': fault,
  });
  return { storage, path };
}

const guestErrors = (log: string) =>
  log.split('\n').filter((line) => line.startsWith('ERROR: Backup of VM'));

describe('a provider with a fault costs one guest', () => {
  test.each([
    ['run:throw:100', /a fault of the provider 'sample' in backup_vm: the vendor has a bug$/],
    ['run:null:100', /a fault of the provider 'sample' in backup_vm: \S/],
    [
      'run:crash:100',
      /the backup host of storage 'sample\d+' has ended unexpectedly, see \S+\.log$/,
    ],
    ['run:uncaught:100', /out of band|cancelled|has ended unexpectedly, see \S+\.log$/],
  ])('B7: %s; the next guest is backed up', async (fault, message) => {
    const { storage, path } = await addStorage(fault);
    const { exitCode, all = '' } = await bench.node.vzdump([100, 101], { storage });
    expect(exitCode, all).not.toBe(0);
    expect(guestErrors(all), all).toHaveLength(1);
    expect(guestErrors(all)[0]).toMatch(message);
    expect(all).toContain('Finished Backup of VM 101');
    const [volid = '', ...more] = await listed(bench.node, storage);
    expect(more).toEqual([]);
    const disk = join(path, volid.replace(/^.*:backup\//, ''), 'drive-scsi0');
    expect(await sha256Of(disk)).toBe(await other.snapshotSha256('drive-scsi0'));
    await expectQuiet(bench, { pids: [other.pid] });
  });

  test('A10: one that says it was done and wrote no archive is found out', async () => {
    const { storage } = await addStorage('run:lie');
    const { exitCode, all = '' } = await bench.node.vzdump([100], { storage });
    expect(exitCode, all).not.toBe(0);
    expect(guestErrors(all)[0]).toContain('Sample reported success but has no archive 100/qemu-');
    expect(await listed(bench.node, storage)).toEqual([]);
  });

  test('B20: one that floods its log delays nobody and loses lines, not the backup', async () => {
    const { storage } = await addStorage('run:flood:100');
    const { exitCode, all = '' } = await bench.node.vzdump([100, 101], { storage });
    expect(exitCode, all.slice(-2000)).toBe(0);
    expect(await listed(bench.node, storage)).toHaveLength(2);
  });

  test('A12: one whose status hangs is inactive, and the other storages are asked in time', async () => {
    const { storage } = await addStorage('status:hang');
    const start = Date.now();
    const status = await bench.node.pvesmJson<Record<string, { active: number }>>(['status']);
    expect(Date.now() - start).toBeLessThan(8000);
    expect(status).toMatchObject({ [storage]: { active: 0 }, vault: { active: 1 } });
  });
});

test('A3: a signal ends a backup whose provider hangs, in time and in PVE’s own words', async () => {
  const { storage } = await addStorage('run:hang');
  await bench.node.forgetCalls();
  const vzdump = bench.node.vzdump([100, 101], { storage });
  const struck = await strikeAt(vzdump, /scsi0: dirty-bitmap status/, () => {
    process.kill(vzdump.pid ?? 0, 'SIGTERM');
  });
  expect(struck.log).toMatch(/^TASK ERROR: interrupted by signal$/m);
  expect(struck.log).not.toContain('VM 101');
  const calls = await bench.node.calls();
  const call = calls.find((each) => each.call === 'provider.backup_vm');
  expect(call?.result).toBe('DIED: PV(interrupted by signal\n)');
  expect(struck.seconds).toBeLessThan(4.5);
  expect(await listed(bench.node, storage)).toEqual([]);
  await expectQuiet(bench, { pids: [other.pid] });
});
