import { randomBytes } from 'node:crypto';
import { access, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
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

const size = 12 * MiB;

const guestErrors = (log: string) =>
  errorLines(log).filter((line) => line.startsWith('ERROR: Backup of VM'));

/** Bytes that no store can make smaller. */
async function scramble(bench: Bench, length = size): Promise<void> {
  for (let offset = 0; offset < length; offset += MiB) {
    await bench.vm.write('drive-scsi0', offset, randomBytes(MiB));
  }
}

describe('a store on a small file system', () => {
  let bench: Bench;
  let first: Archive;

  beforeAll(async () => {
    bench = await startBench({ disks: [{ device: 'drive-scsi0', size }, efiDisk] });
    const options = `size=${20 * MiB},mode=0700`;
    await execa('mount', ['-t', 'tmpfs', '-o', options, 'store', bench.store]);
    await scramble(bench);
    first = await expectBackup(bench);
  });
  afterAll(async () => {
    await execa('umount', ['-l', bench.store], { reject: false });
    await bench.close();
  });

  test('B12: read-only, a backup fails, and archives can still be restored', async () => {
    await execa('mount', ['-o', 'remount,ro', bench.store]);
    const refused = await bench.backUp();
    expect(refused.exitCode, refused.log).not.toBe(0);
    expect(guestErrors(refused.log)).toHaveLength(1);
    expect(guestErrors(refused.log)[0]).toContain('is mounted read-only');
    await expectQuiet(bench, { mounts: [bench.store] });
    await expectArchives(bench, [first]);
    await execa('mount', ['-o', 'remount,rw', bench.store]);
  });

  test('D4: a path that is gone is an inactive storage and a clear error', async () => {
    const path = join(bench.node.root, 'gone');
    await bench.node.addStorage('gone', 'bridge-dir', { path, content: 'backup' });
    const status = await bench.node.pvesmJson<Record<string, { active: number }>>(['status']);
    expect(status).toMatchObject({ gone: { active: 0 }, vault: { active: 1 } });
    const refused = await bench.backUp({ storage: 'gone' });
    expect(refused.exitCode).not.toBe(0);
    expect(errorLines(refused.log).join('\n')).toContain(
      `directory ${path} does not exist: is its file system mounted?`,
    );
    await expect(access(path)).rejects.toThrow('ENOENT');
  });

  test('B15: when it is full the error says what to do; larger, the next backup is right', async () => {
    await scramble(bench);
    const full = await bench.backUp();
    expect(full.exitCode).not.toBe(0);
    expect(guestErrors(full.log)).toEqual([
      `ERROR: Backup of VM 100 failed - cannot back up VM 100: the store ${bench.store} is full: ` +
        'remove or prune archives, or make the file system larger',
    ]);
    await expectQuiet(bench, { mounts: [bench.store] });
    expect(await strayFiles(bench.store, [100])).toEqual([]);
    await expectArchives(bench, [first]);
    await execa('mount', ['-o', `remount,size=${3 * size}`, bench.store]);
    const next = await expectBackup(bench);
    expect(next.log).toContain('drive-scsi0: incremental since');
    await expectArchives(bench, [first, next]);
  });

  test('B12: unmounted during a backup, it fails and writes nothing to the directory below', async () => {
    await scramble(bench);
    await bench.nextSecond();
    const vzdump = bench.node.vzdump([100], { storage: 'vault', bwlimit: 4 * 1024 });
    const struck = await strikeAt(vzdump, inData, () => execa('umount', ['-l', bench.store]));
    expect(struck.exitCode, struck.log).not.toBe(0);
    expect(await readdir(bench.store)).toEqual([]);
    await expectQuiet(bench);
  });

  test('D4: unmounted between backups, no new store is begun in the directory below', async () => {
    const refused = await bench.backUp();
    expect(refused.exitCode, refused.log).not.toBe(0);
    expect(errorLines(refused.log).join('\n')).toContain('is its file system mounted?');
    const status = await bench.node.pvesmJson<Record<string, { active: number }>>(['status']);
    expect(status.vault?.active).toBe(0);
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
