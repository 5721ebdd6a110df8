import { cp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Backup, type Bench, efiDisk, KiB, MiB, startBench } from './support/bench.ts';

const scsi0 = { device: 'drive-scsi0', size: 16 * MiB, seed: 1 };
const scsi1 = { device: 'drive-scsi1', size: 8 * MiB, seed: 3 };
const band = 4 * MiB;
const total = scsi0.size + scsi1.size + efiDisk.size;

let bench: Bench;
let disks = [scsi0, scsi1, efiDisk];
let writes = 0;
/** Whatever was not removed since; all are restored in the end. */
const archives = new Map<string, Backup>();

/** The guest writes into one band of a disk. */
async function change(device = 'drive-scsi0', bands = scsi0.size / band): Promise<void> {
  writes += 1;
  const offset = (writes % bands) * band + 64 * KiB;
  await bench.vm.write(device, offset, { pattern: writes, length: 20 * KiB });
}

/** A backup that takes what QEMU counted as dirty, no more and no less, whatever the plan was. */
async function backUp(options: Parameters<Bench['backUp']>[0] = {}): Promise<Backup> {
  const backup = await bench.backUp(options);
  expect(backup.exitCode, backup.log).toBe(0);
  expect(backup.backedUpBytes, backup.log).toBe(backup.dirtyBytes);
  archives.set(backup.volid, backup);
  return backup;
}

function expectFull(backup: Backup): void {
  expect(backup.log).not.toContain('incremental since');
  expect(backup.backedUpBytes).toBe(total);
}

const nameOf = ({ volid }: Backup) => volid.replace(/^.*:backup\//, '');
const since = (device: string, base: Backup) => `${device}: incremental since ${nameOf(base)}, `;
const ledger = () => join(bench.node.root, 'run/pve-backup-bridge/bitmaps/vault/100.json');

/** Each test finds a newest archive whose bitmap is good, and leaves one. */
let newest: Backup;

beforeAll(async () => {
  const storages = { vault: { path: 'store' }, twin: { path: 'store' } };
  bench = await startBench({ disks, storages });
  newest = await backUp();
  expectFull(newest);
});

afterAll(() => bench.close());

test('B15: a bitmap that counts from the newest archive is used', async () => {
  await change();
  const backup = await backUp();
  expect(backup.readBytes).toBe(band);
  for (const { device } of disks) expect(backup.log).toContain(since(device, newest));
  newest = backup;
});

describe('another QEMU process', () => {
  test('after a restart there is no bitmap', async () => {
    await bench.vm.restart();
    newest = await backUp();
    expectFull(newest);
  });

  test('E9: a bitmap that came back with a RAM snapshot is not used', async () => {
    await bench.vm.ramSnapshot('before');
    await change();
    const between = await backUp();
    expect(between.readBytes).toBe(band);
    await bench.vm.rollback('before');
    newest = await backUp();
    expectFull(newest);
    expect(newest.sha256).not.toEqual(between.sha256);
  });

  test('E9: nor one that was migrated there and back', async () => {
    await bench.vm.migrate();
    await change();
    await bench.vm.migrate();
    newest = await backUp();
    expectFull(newest);
    await change();
    newest = await backUp();
    expect(newest.readBytes).toBe(band);
  });
});

describe('other disks', () => {
  test('E8: a disk that grew is read in full, the others are not', async () => {
    const size = 3 * band;
    await bench.vm.resize('drive-scsi1', size);
    await bench.vm.write('drive-scsi1', size - KiB, { pattern: 9, length: KiB });
    const before = disks;
    disks = disks.map((disk) => (disk === scsi1 ? { ...scsi1, size } : disk));
    await bench.setDisks(disks);
    const grown = await backUp();
    expect(grown.backedUpBytes).toBe(size);
    expect(grown.log).toContain('drive-scsi1: full, 12.0 MiB of 12.0 MiB to back up');
    expect(grown.log).toContain(since('drive-scsi0', newest));
    await change('drive-scsi1', 3);
    newest = await backUp();
    expect(newest.readBytes).toBe(band);
    // the size of before, for what follows; a restart empties the bitmaps, too
    disks = before;
    await bench.restartWith(disks);
    newest = await backUp();
    expectFull(newest);
  });

  test('B15: a disk that was left out of a backup is read in full when it is back', async () => {
    await bench.setDisks(disks.filter((disk) => disk !== scsi1));
    await change('drive-scsi1', 2);
    await change();
    const without = await backUp();
    expect(without.readBytes).toBe(band);
    expect(without.sha256.size).toBe(2);
    await bench.setDisks(disks);
    newest = await backUp();
    expect(newest.backedUpBytes).toBe(scsi1.size);
    expect(newest.log).toContain('drive-scsi1: full, ');
    expect(newest.log).toContain(since('drive-scsi0', without));
  });
});

describe('another newest archive in the store', () => {
  test('B15: the newest one was removed', async () => {
    await change();
    const { exitCode, all } = await bench.node.pvesm(['free', newest.volid]);
    expect(exitCode, all).toBe(0);
    archives.delete(newest.volid);
    newest = await backUp();
    expectFull(newest);
  });

  test('B15: the store was rolled back', async () => {
    const copy = `${bench.store}.copy`;
    await cp(bench.store, copy, { recursive: true, preserveTimestamps: true });
    await change();
    const lost = await backUp();
    expect(lost.readBytes).toBe(band);
    await rm(bench.store, { recursive: true });
    await rename(copy, bench.store);
    archives.delete(lost.volid);
    await change();
    newest = await backUp();
    expectFull(newest);
  });

  test('B15: two storages on one path', async () => {
    await change();
    expectFull(await backUp({ storage: 'twin' }));
    await change();
    expectFull(await backUp({ storage: 'vault' }));
    await change();
    newest = await backUp({ storage: 'vault' });
    expect(newest.readBytes).toBe(band);
  });
});

describe('a failure in between', () => {
  test('B12, B15: after the commit, the archive stands and the next one builds on it', async () => {
    await change();
    const failed = await bench.backUp({ scriptFailBackupEnd: true });
    expect(failed.exitCode, failed.log).toBe(255);
    expect(failed.log).toContain('hook-script backup-end');
    expect(failed.readBytes).toBe(band);
    archives.set(failed.volid, failed);
    await change();
    newest = await backUp();
    expect(newest.readBytes).toBe(band);
    expect(newest.log).toContain(since('drive-scsi0', failed));
  });

  test('B15: before the commit, the next one reads what both would have', async () => {
    await bench.vm.write('drive-scsi0', 0, { pattern: 0xf1, length: 3 * band });
    await bench.nextSecond();
    const job = bench.node.vzdump([100], { storage: 'vault', bwlimit: 1024 });
    job.stdout.on('data', (text: Buffer) => {
      if (text.includes('drive-scsi0: incremental')) job.kill('SIGTERM');
    });
    const { exitCode, all = '' } = await job;
    expect(exitCode, all).toBe(255);
    expect(all).toContain('interrupted by signal');
    const [killed = ''] = bench.archivesIn(all);
    await bench.vm.write('drive-scsi0', 3 * band, { pattern: 0xf2, length: KiB });
    const backup = await backUp();
    expect(backup.readBytes).toBe(4 * band);
    expect(backup.log).toContain(since('drive-scsi0', newest));
    newest = backup;
    const listed = await bench.node.pvesmJson<{ volid: string }[]>(['list', 'vault']);
    expect(listed.map(({ volid }) => volid)).not.toContain(killed);
  });
});

describe('a ledger that says nothing', () => {
  test('B15: it is lost', async () => {
    await rm(ledger());
    newest = await backUp();
    expectFull(newest);
  });

  test.each([
    ['cut short', (text: string) => text.slice(0, text.length / 2)],
    ['of another form', (text: string) => text.replace('"version":1', '"version":2')],
    ['of another archive', (text: string) => text.replaceAll(/"archiveId":"./g, '"archiveId":"x')],
  ])('B15: it is damaged: %s', async (_, damage) => {
    const text = await readFile(ledger(), 'utf8');
    expect(damage(text)).not.toBe(text);
    await writeFile(ledger(), damage(text));
    await change();
    newest = await backUp();
    expectFull(newest);
  });

  test('B15: the next one after that is incremental again', async () => {
    await change();
    newest = await backUp();
    expect(newest.readBytes).toBe(band);
  });
});

test('every archive is restored bit for bit, whatever came after it', async () => {
  const listed = await bench.node.pvesmJson<{ volid: string }[]>(['list', 'vault']);
  const names = (volids: Iterable<string>) =>
    Array.from(volids, (volid) => volid.replace(/^\w+:/, '')).sort();
  expect(names(listed.map(({ volid }) => volid))).toEqual(names(archives.keys()));
  const left = [...archives.values()];
  const work = async () => {
    for (let next = left.pop(); next; next = left.pop()) {
      const restore = await bench.restore(next);
      expect(restore, `${next.volid}\n${restore.log}`).toMatchObject({
        exitCode: 0,
        differing: [],
      });
    }
  };
  await Promise.all([work(), work()]);
});
