import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterEach, describe, expect, test } from 'vitest';
import type { PveNode } from '../../fixtures/pve/pve-node.ts';
import type { RecordedCall } from '../../fixtures/pve/recorded-call.ts';
import { type Archive, type Bench, efiDisk, KiB, MiB, startBench } from './support/bench.ts';
import { ContainerBench } from './support/containers.ts';
import { VendorInstall } from './support/vendor.ts';

const scsi0 = { device: 'drive-scsi0', size: 24 * MiB + 512 * KiB, seed: 1 };
const disks = [scsi0, efiDisk];
const total = scsi0.size + efiDisk.size;

let close: (() => Promise<void>) | undefined;
afterEach(async () => {
  await close?.();
  close = undefined;
});

/** From now on the node's programs are those of the RFC's third version, under -T. */
function useRfcV3(node: PveNode): void {
  const run = node.run.bind(node);
  node.run = (program, args) =>
    ['vzdump', 'qmrestore', 'pct'].includes(program)
      ? run('rfc-v3', [program, ...args], { taint: true })
      : run(program, args);
}

/** What of the RFC was called since the last time: `LIST backup_get_mechanism`, `void job_hook start`. */
async function asked(node: PveNode): Promise<string[]> {
  const describeCall = ({ call, args, context }: RecordedCall) => {
    const phase = call.endsWith('_hook') ? ` ${args[0]?.replace(/^PV\((\w+)\)$/, '$1')}` : '';
    return `${context} ${call.slice('rfc.'.length)}${phase}`;
  };
  const calls = await node.calls();
  await node.forgetCalls();
  for (const { call, taint } of calls) expect(taint, call).toBe(1);
  // nothing of the released names
  expect(
    calls.filter(({ call }) => call.startsWith('provider.') && call !== 'provider.new'),
  ).toEqual([]);
  return calls.filter(({ call }) => call.startsWith('rfc.')).map(describeCall);
}

const jobOf = (...guest: readonly string[]) => [
  'void job_hook start',
  'void backup_hook start',
  'scalar backup_get_archive_name',
  'scalar provider_name',
  'scalar provider_name',
  ...guest,
];
const end = [
  'void backup_hook end',
  'scalar backup_get_task_size',
  'void backup_handle_log_file',
  'void job_hook end',
];
const restoredVm = [
  'scalar restore_get_guest_config',
  'LIST restore_get_mechanism',
  'scalar restore_vm_init',
  'scalar restore_get_guest_config',
  'scalar restore_get_firewall_config',
  ...disks.flatMap(() => ['scalar restore_vm_volume_init', 'void restore_vm_volume_cleanup']),
  'void restore_vm_cleanup',
];

async function expectIdentical(bench: Bench, archive: Archive): Promise<void> {
  const restore = await bench.restore(archive);
  expect(restore, restore.log).toMatchObject({ exitCode: 0, differing: [] });
}

async function backUp(bench: Bench, storage: string) {
  const backup = await bench.backUp({ storage });
  expect(backup.exitCode, backup.log).toBe(0);
  expect(backup.sha256.size).toBe(disks.length);
  return backup;
}

describe('nbd', () => {
  test('full, incremental by the bitmap’s id, and restored bit for bit', async () => {
    const bench = await startBench({ disks });
    close = () => bench.close();
    useRfcV3(bench.node);
    const full = await backUp(bench, 'vault');
    expect(full.backedUpBytes).toBe(total);
    expect(await asked(bench.node)).toEqual([
      ...jobOf('LIST backup_get_mechanism', 'void backup_vm'),
      ...end,
    ]);
    await bench.vm.write('drive-scsi0', 9 * MiB, { pattern: 0x5a, length: 4 * MiB });
    const incremental = await backUp(bench, 'vault');
    expect(incremental.backedUpBytes).toBe(8 * MiB);
    await asked(bench.node);
    await expectIdentical(bench, full);
    expect(await asked(bench.node)).toEqual(restoredVm);
    await expectIdentical(bench, incremental);
  });

  test('B15: without the newest archive all is read, by another bitmap', async () => {
    const bench = await startBench({ disks });
    close = () => bench.close();
    useRfcV3(bench.node);
    await backUp(bench, 'vault');
    await bench.vm.write('drive-scsi0', 0, { pattern: 0x11, length: MiB });
    const newest = await backUp(bench, 'vault');
    expect(newest.backedUpBytes).toBe(4 * MiB);
    expect((await bench.node.pvesm(['free', newest.volid])).exitCode).toBe(0);
    await bench.vm.write('drive-scsi0', 16 * MiB, { pattern: 0x22, length: MiB });
    const after = await backUp(bench, 'vault');
    expect(after.backedUpBytes).toBe(total);
    await expectIdentical(bench, after);
    const next = await backUp(bench, 'vault');
    expect(next.backedUpBytes).toBe(0);
    await expectIdentical(bench, next);
  });
});

describe('block-device', () => {
  test('a vendor’s full and incremental backups through a loop device', async () => {
    const vendor = await VendorInstall.create();
    const bench = await startBench({ disks, node: vendor.nodeOptions });
    close = async () => {
      await bench.close();
      await vendor.remove();
    };
    const path = join(bench.node.root, 'sample');
    await mkdir(path);
    const options = { path, content: 'backup', 'sample-mechanism': 'block-device' };
    await bench.node.addStorage('sample', 'sample', options);
    useRfcV3(bench.node);
    const full = await backUp(bench, 'sample');
    const [call] = (await bench.node.calls()).filter((c) => c.call === 'rfc.backup_vm');
    expect(call?.args[2]).toMatch(/path => PV\(\/dev\/loop\d+\)/);
    await bench.vm.write('drive-scsi0', 5 * MiB, { pattern: 0x5a, length: 512 });
    await bench.vm.write('drive-scsi0', scsi0.size - 512, { pattern: 0x33, length: 512 });
    const incremental = await backUp(bench, 'sample');
    const reused = (await bench.node.calls()).filter((c) => c.call === 'rfc.backup_vm');
    expect(reused[1]?.args[2]?.match(/bitmap-mode => PV\S*\(reuse\)/g)).toHaveLength(2);
    await expectIdentical(bench, full);
    await expectIdentical(bench, incremental);
    expect((await execa('losetup', ['--list', '--output', 'BACK-FILE'])).stdout).not.toContain(
      bench.node.root,
    );
  });
});

describe('directory', () => {
  test('a container, every attribute', async () => {
    const bench = await ContainerBench.create();
    close = () => bench.close();
    await bench.add({ vmid: 101, mountPoints: true });
    const before = await bench.describe(101);
    useRfcV3(bench.node);
    const { exitCode, log, volids } = await bench.backUp([101]);
    expect(exitCode, log).toBe(0);
    expect(await asked(bench.node)).toEqual([
      ...jobOf('LIST backup_get_mechanism', 'void backup_hook prepare', 'void backup_container'),
      ...end,
    ]);
    const restored = await bench.restore(volids[0] ?? '', 901);
    expect(restored.exitCode, restored.log).toBe(0);
    expect(await asked(bench.node)).toEqual([
      'scalar restore_get_guest_config',
      'LIST restore_get_mechanism',
      'scalar restore_container_init',
      'void restore_container_cleanup',
      'scalar restore_get_guest_config',
      'scalar restore_get_firewall_config',
    ]);
    const comparison = await bench.compare(101, 901, { before });
    expect(comparison.differences).toEqual([]);
    expect(comparison.entries).toBeGreaterThan(3000);
  });
});

test('a guest that fails is aborted, the job goes on and ends', async () => {
  const bench = await startBench({ disks: [efiDisk] });
  close = () => bench.close();
  useRfcV3(bench.node);
  await bench.node.addVm(99, 'name: none\n');
  const { exitCode, all = '' } = await bench.node.vzdump([99, 100], { storage: 'vault' });
  expect(exitCode, all).not.toBe(0);
  const calls = await asked(bench.node);
  expect(calls.filter((call) => call.includes('_hook'))).toEqual([
    'void job_hook start',
    'void backup_hook abort',
    'void backup_hook start',
    'void backup_hook end',
    'void job_hook end',
  ]);
  expect(bench.archivesIn(all)).toHaveLength(1);
});
