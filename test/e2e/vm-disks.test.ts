import { rename } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { ControlClient } from '../../fixtures/qemu/control-client.ts';
import type { DiskSpec } from '../../fixtures/qemu/virtual-machine.ts';
import { type Backup, type Bench, KiB, MiB, startBench } from './support/bench.ts';

const band = 4 * MiB;
const scsi0 = { device: 'drive-scsi0', size: 12 * MiB, seed: 1 };
const scsi1 = { device: 'drive-scsi1', size: 12 * MiB, seed: 2 };
const scsi2 = { device: 'drive-scsi2', size: 8 * MiB, seed: 3 };
const disks = [scsi0, scsi1, scsi2];

let bench: Bench;
let before: Backup;

beforeAll(async () => {
  bench = await startBench({ disks });
});
afterAll(() => bench.close());

/** Each test finds a newest archive whose bitmaps are good. */
beforeEach(async () => {
  await bench.replaceVm(disks);
  before = await backUp();
  await bench.vm.write('drive-scsi0', 0, { pattern: 7, length: KiB });
  const used = await backUp();
  expect(used.readBytes).toBe(band);
  before = used;
});

/** Whatever came after it, the archive of before the change is what it was. */
afterEach(() => expectIdentical(before));

async function backUp(): Promise<Backup> {
  const backup = await bench.backUp();
  expect(backup.exitCode, backup.log).toBe(0);
  return backup;
}

async function expectIdentical(backup: Backup): Promise<void> {
  const restore = await bench.restore(backup);
  expect(restore, restore.log).toMatchObject({ exitCode: 0, differing: [] });
}

/**
 * Gives the VM a bitmap by the bridge's name that says that nothing has changed: QEMU's word alone, as
 * after a RAM snapshot or a migration of this very VM, would take the archive of other disks as base [E9].
 */
async function pretendClean(): Promise<void> {
  const { node, vmid } = bench;
  const client = await ControlClient.connect(node.root, vmid);
  try {
    const names = Object.keys(await client.queryVolumes());
    const modes = Object.fromEntries(names.map((device) => [device, 'new' as const]));
    await client.setup('snapshot-access:vault', join(node.root, 'pretend.sock'), modes);
    await client.teardown(true);
    expect(names.length).toBeGreaterThan(1);
  } finally {
    client.close();
  }
}

/** The next backup reads everything, is what the disks are, and the one after it is incremental. */
async function expectFull(now: readonly DiskSpec[]): Promise<void> {
  const total = now.reduce((sum, { size }) => sum + size, 0);
  const full = await backUp();
  expect(full.log).not.toContain('incremental since');
  expect(full.backedUpBytes, full.log).toBe(total);
  expect(full.sha256.size).toBe(now.length);
  for (const { device } of now) {
    expect(full.sha256.get(device), device).not.toBe(before.sha256.get(device));
  }
  await expectIdentical(full);
  await bench.vm.write('drive-scsi1', 0, { pattern: 9, length: KiB });
  const next = await backUp();
  expect(next.readBytes, next.log).toBe(band);
  expect(next.log).toContain('drive-scsi1: incremental since ');
  await expectIdentical(next);
}

/** With bitmaps that are lost, as they are, and with such as say that nothing has changed. */
test.each([false, true])('B15: disks of one size swapped (clean bitmaps: %s)', async (clean) => {
  await bench.vm.powerOff();
  await swapFiles('drive-scsi0', 'drive-scsi1');
  const now = [scsi0, scsi1];
  await bench.restartWith(now);
  if (clean) await pretendClean();
  await expectFull(now);
});

test.each([false, true])('E8: disks and their sizes swapped (clean bitmaps: %s)', async (clean) => {
  await bench.vm.powerOff();
  await swapFiles('drive-scsi1', 'drive-scsi2');
  const now = [
    { ...scsi1, size: scsi2.size },
    { ...scsi2, size: scsi1.size },
  ];
  await bench.restartWith(now);
  if (clean) await pretendClean();
  await expectFull(now);
});

test.each([false, true])('E8: disks that shrank (clean bitmaps: %s)', async (clean) => {
  const now = [
    { ...scsi0, size: 9 * MiB },
    { ...scsi1, size: 4 * MiB },
  ];
  await bench.restartWith(now);
  if (clean) await pretendClean();
  await expectFull(now);
});

test.each([false, true])('B15: another VM under the same id (clean bitmaps: %s)', async (clean) => {
  const now = disks.map((disk) => ({ ...disk, seed: disk.seed + 100 }));
  await bench.replaceVm(now);
  if (clean) await pretendClean();
  await expectFull(now);
});

async function swapFiles(one: string, other: string): Promise<void> {
  const [a, b] = [bench.vm.diskPath(one), bench.vm.diskPath(other)];
  await rename(a, `${a}.away`);
  await rename(b, a);
  await rename(`${a}.away`, b);
}
