import { randomBytes } from 'node:crypto';
import { mkdir, readdir, rename } from 'node:fs/promises';
import { execa } from 'execa';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type Archive, type Bench, efiDisk, MiB, startBench } from './support/bench.ts';
import {
  errorLines,
  expectArchives,
  expectBackup,
  expectQuiet,
  inData,
  listed,
  strikeAt,
} from './support/faults.ts';
import { strayFiles } from './support/store-reader.ts';

const size = 24 * MiB;

/** Bytes that no store can make smaller. */
async function scramble(bench: Bench, length = size): Promise<void> {
  for (let offset = 0; offset < length; offset += MiB) {
    await bench.vm.write('drive-scsi0', offset, randomBytes(MiB));
  }
}

describe('a store on a small file system', () => {
  let bench: Bench;
  let first: Archive;

  beforeEach(async () => {
    bench = await startBench({ disks: [{ device: 'drive-scsi0', size }, efiDisk] });
    await execa('mount', ['-t', 'tmpfs', '-o', 'size=40m,mode=0700', 'store', bench.store]);
    await scramble(bench);
    first = await expectBackup(bench);
  });
  afterEach(async () => {
    await execa('umount', ['-l', bench.store], { reject: false });
    await bench.close();
  });

  const expectOneError = (log: string, text: string) => {
    const lines = errorLines(log).filter((line) => line.startsWith('ERROR: Backup of VM'));
    expect(lines, log).toHaveLength(1);
    expect(lines[0]).toContain(text);
  };

  test('B12, B15: when it runs full, the error says what to do; larger, the next backup is right', async () => {
    await scramble(bench);
    const full = await bench.backUp();
    expect(full.exitCode).not.toBe(0);
    expectOneError(
      full.log,
      `the store ${bench.store} is full: remove or prune archives, or make the file system larger`,
    );
    await expectQuiet(bench, { mounts: [bench.store] });
    expect(await strayFiles(bench.store, [100])).toEqual([]);
    await expectArchives(bench, [first]);
    await execa('mount', ['-o', 'remount,size=80m', bench.store]);
    const next = await expectBackup(bench);
    expect(next.log).toContain('drive-scsi0: incremental since');
    await expectArchives(bench, [first, next]);
  });

  test('D4: read-only, backups fail with the reason, and archives can still be restored', async () => {
    await scramble(bench, 4 * MiB);
    await execa('mount', ['-o', 'remount,ro', bench.store]);
    const refused = await bench.backUp();
    expect(refused.exitCode).not.toBe(0);
    const lines = errorLines(refused.log);
    expect(lines.length, refused.log).toBeGreaterThan(0);
    for (const line of lines) expect(line).toMatch(/read-only|interrupted|job/);
    await expectQuiet(bench, { mounts: [bench.store] });
    await expectArchives(bench, [first]);
    await execa('mount', ['-o', 'remount,rw', bench.store]);
    await expectBackup(bench);
  });

  test('D4: unmounted between two backups, nothing is written to the directory below', async () => {
    await execa('umount', [bench.store]);
    const refused = await bench.backUp();
    expect(refused.exitCode, refused.log).not.toBe(0);
    expect(errorLines(refused.log).join('\n')).toMatch(/mounted/);
    expect(await readdir(bench.store)).toEqual([]);
    await expectQuiet(bench);
  });

  test('D4: unmounted during a backup, nothing is written to the directory below', async () => {
    await scramble(bench, 16 * MiB);
    await bench.nextSecond();
    const vzdump = bench.node.vzdump([100], { storage: 'vault', bwlimit: 8 * 1024 });
    const struck = await strikeAt(vzdump, inData, () => execa('umount', ['-l', bench.store]));
    expect(struck.exitCode, struck.log).not.toBe(0);
    expect(await readdir(bench.store)).toEqual([]);
    await expectQuiet(bench);
  });

  test('D4: a path that is gone is an inactive storage and a clear error', async () => {
    await execa('umount', [bench.store]);
    await rename(bench.store, `${bench.store}.gone`);
    const status = await bench.node.pvesmJson<Record<string, { active: number }>>(['status']);
    expect(status.vault?.active).toBe(0);
    const refused = await bench.backUp();
    expect(refused.exitCode).not.toBe(0);
    expect(errorLines(refused.log).join('\n')).toContain(
      `directory ${bench.store} does not exist: is its file system mounted?`,
    );
    await mkdir(bench.store);
    expect(await readdir(bench.store)).toEqual([]);
  });
});

test('E7: a full fleecing image is named, and the next backup is right', async () => {
  const bench = await startBench({
    disks: [{ device: 'drive-scsi0', size, seed: 1 }, efiDisk],
    fleecing: { limit: 2 * MiB },
  });
  try {
    const first = await expectBackup(bench);
    await scramble(bench);
    await bench.vm.startLoad({ targets: [{ device: 'drive-scsi0' }] });
    const broken = await bench.backUp({ bwlimit: 4 * 1024 });
    await bench.vm.stopLoad();
    expect(broken.exitCode, broken.log).not.toBe(0);
    expect(broken.log).toMatch(/Backup of VM 100 failed - .*fleecing image is full/);
    await expectQuiet(bench);
    expect(await listed(bench.node)).toEqual([first.volid]);
    const next = await expectBackup(bench);
    await expectArchives(bench, [first, next]);
  } finally {
    await bench.close();
  }
});
