import { mkdir, readdir, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { sha256Of } from '../../fixtures/qemu/mixed-data.ts';
import { type Backup, type Bench, efiDisk, MiB, startBench } from './support/bench.ts';
import { errorLines, expectBackup, expectQuiet } from './support/faults.ts';

const newId = 300;
const disks = [{ device: 'drive-scsi0', size: 16 * MiB, seed: 1 }, efiDisk];
const old = 'the disk of the VM that is to be replaced';

let bench: Bench;
let archive: Backup;

beforeAll(async () => {
  // chunks are as long as what they hold, so that a damage is one of a known kind
  bench = await startBench({ disks, storages: { vault: { 'bridge-dir-compression': 'none' } } });
  archive = await expectBackup(bench);
  await bench.node.addVm(newId, 'name: old\n');
});
afterAll(() => bench.close());

const oldPath = () => bench.node.restoredPath(newId, 'drive-scsi0');
const folder = () => join(bench.store, archive.volid.replace(/^.*:backup\//, ''));

async function firstChunk(): Promise<string> {
  const chunks = join(bench.store, 'chunks');
  const names = await readdir(chunks, { recursive: true });
  return join(chunks, names.filter((name) => /[0-9a-f]{64}$/.test(name)).sort()[0] ?? '');
}

async function forceRestore(): Promise<{ exitCode: number | undefined; all: string }> {
  await mkdir(join(bench.node.root, `restore/${newId}`), { recursive: true });
  await writeFile(oldPath(), old);
  const { exitCode, all = '' } = await bench.node.qmrestore(archive.volid, newId, { force: true });
  return { exitCode, all };
}

/** Damages a file, runs, and puts the file back. */
async function whileDamaged(
  path: string,
  damage: (path: string) => Promise<unknown>,
  run: () => Promise<void>,
): Promise<void> {
  const content = await readFile(path);
  await damage(path);
  try {
    await run();
  } finally {
    await rm(path, { force: true });
    await writeFile(path, content);
  }
}

test.each<[string, () => string | Promise<string>, (path: string) => Promise<unknown>]>([
  ['a chunk that is missing', firstChunk, (path) => rm(path)],
  ['an empty chunk', firstChunk, (path) => truncate(path, 0)],
  ['a chunk that was cut', firstChunk, (path) => truncate(path, 1000)],
  ['a missing index', () => join(folder(), 'drive-scsi0.index'), (path) => rm(path)],
  ['a cut index', () => join(folder(), 'drive-scsi0.index'), (path) => truncate(path, 32)],
  ['a damaged record', () => join(folder(), 'archive.json'), (path) => truncate(path, 50)],
])('C4: with %s the disks of the VM that --force replaces are left', async (_, path, damage) => {
  await whileDamaged(await path(), damage, async () => {
    const { exitCode, all } = await forceRestore();
    expect(exitCode, all).toBe(255);
    expect(errorLines(all), all).toHaveLength(1);
    expect(await readFile(oldPath(), 'utf8')).toBe(old);
    await expectQuiet(bench);
  });
});

test('C4: the same with an archive that is gone', async () => {
  await rename(folder(), `${bench.store}.away`);
  try {
    const { exitCode, all } = await forceRestore();
    expect(exitCode, all).toBe(255);
    expect(await readFile(oldPath(), 'utf8')).toBe(old);
  } finally {
    await rename(`${bench.store}.away`, folder());
  }
});

test('C5: content that is wrong fails the restore in the middle, and all is released', async () => {
  const flip = async (path: string) => {
    const content = await readFile(path);
    content.writeUInt8(content.readUInt8(content.length >> 1) ^ 1, content.length >> 1);
    await writeFile(path, content);
  };
  await whileDamaged(await firstChunk(), flip, async () => {
    const { exitCode, all } = await forceRestore();
    expect(exitCode, all).toBe(255);
    expect(all).not.toContain('TASK OK');
    await expectQuiet(bench);
  });
});

test('C1, C4: undamaged, the old disks are replaced bit for bit', async () => {
  const { exitCode, all } = await forceRestore();
  expect(exitCode, all).toBe(0);
  for (const [device, digest] of archive.sha256) {
    expect(await sha256Of(bench.node.restoredPath(newId, device)), device).toBe(digest);
  }
});
