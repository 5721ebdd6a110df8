import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Backup, type Bench, efiDisk, KiB, MiB, startBench } from './support/bench.ts';

/** The last one is no multiple of 4 KiB. */
const odd = { device: 'drive-scsi1', size: 9 * MiB + 3 * KiB, seed: 5 };
const disks = [{ device: 'drive-scsi0', size: 24 * MiB, seed: 1 }, efiDisk, odd];
const total = disks.reduce((sum, { size }) => sum + size, 0);

let bench: Bench;

beforeAll(async () => {
  bench = await startBench({
    disks,
    storages: {
      nbd: { path: 'nbd' },
      files: { path: 'files', 'bridge-dir-mechanism': 'file-handle' },
    },
  });
});

afterAll(() => bench.close());

/** Both mechanisms, one after the other, while the guest stands still. */
async function backUpBoth(): Promise<{ nbd: Backup; files: Backup }> {
  const [nbd, files] = [
    await bench.backUp({ storage: 'nbd' }),
    await bench.backUp({ storage: 'files' }),
  ];
  for (const backup of [nbd, files]) expect(backup.exitCode, backup.log).toBe(0);
  return { nbd, files };
}

const indexOf = (storage: string, { volid }: Backup, device: string) =>
  readFile(join(bench.node.root, storage, volid.replace(/^.*:backup\//, ''), `${device}.index`));

/** The stores hold the same, and what PVE restores of it is the disk. */
async function expectEqual(both: { nbd: Backup; files: Backup }): Promise<void> {
  expect(both.files.log).toContain("using backup mechanism 'file-handle'");
  expect(both.nbd.log).toContain("using backup mechanism 'nbd'");
  expect(both.files.backedUpBytes).toBe(both.nbd.backedUpBytes);
  for (const { device } of disks) {
    const [expected, actual] = [
      await indexOf('nbd', both.nbd, device),
      await indexOf('files', both.files, device),
    ];
    expect(actual.equals(expected), device).toBe(true);
  }
  const restore = await bench.restore(both.files);
  expect(restore, restore.log).toMatchObject({ exitCode: 0, differing: [] });
}

describe('B7: file-handle gives what nbd gives', () => {
  test('in a full backup', async () => {
    const both = await backUpBoth();
    expect(both.files.backedUpBytes).toBe(total);
    await expectEqual(both);
  });

  test('in an incremental one, at both ends and in the middle of the disks', async () => {
    await bench.vm.write('drive-scsi0', 0, { pattern: 1, length: 4 * KiB });
    await bench.vm.write('drive-scsi0', 12 * MiB - KiB, { pattern: 2, length: 2 * KiB });
    await bench.vm.write(odd.device, odd.size - 512, { pattern: 3, length: 512 });
    const both = await backUpBoth();
    expect(both.files.backedUpBytes).toBe(12 * MiB + (odd.size - 8 * MiB));
    await expectEqual(both);
  });

  test('when nothing was written', async () => {
    const both = await backUpBoth();
    expect(both.files.backedUpBytes ?? 0).toBe(0);
    await expectEqual(both);
  });
});
