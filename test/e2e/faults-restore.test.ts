import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Archive, type Bench, efiDisk, MiB, startBench } from './support/bench.ts';
import { expectArchives, expectBackup, expectQuiet, strikeAt } from './support/faults.ts';
import { childrenOf, hostPids } from './support/leftovers.ts';

let bench: Bench;
let archive: Archive;

beforeAll(async () => {
  const disks = [{ device: 'drive-scsi0', size: 128 * MiB, seed: 1 }, efiDisk];
  bench = await startBench({ disks });
  archive = await expectBackup(bench);
});
afterAll(() => bench.close());

let newId = 800;

/** Kills a process while qemu-img reads the disk. */
async function restoreAndKill(victim: (qmrestore: number) => Promise<number | undefined>) {
  const qmrestore = bench.node.qmrestore(archive.volid, ++newId);
  return strikeAt(
    qmrestore,
    /importing drive 'drive-scsi0'/,
    async () => process.kill((await victim(qmrestore.pid ?? 0)) ?? -1, 'SIGKILL'),
    0,
  );
}

test('A5: kill -9 of the worker that restores leaves no mount and no process', async () => {
  const struck = await restoreAndKill(async (qmrestore) => (await childrenOf(qmrestore))[0]);
  expect(struck.exitCode).not.toBe(0);
  expect(struck.log).not.toContain('TASK OK');
  await expectQuiet(bench);
  await expectArchives(bench, [archive]);
});

test('C5: kill -9 of the host fails the restore and leaves no mount and no process', async () => {
  const struck = await restoreAndKill(async () => (await hostPids(bench.node.root))[0]);
  expect(struck.exitCode).not.toBe(0);
  expect(struck.log).toMatch(/^TASK ERROR: /m);
  await expectQuiet(bench);
  await expectArchives(bench, [archive]);
});
