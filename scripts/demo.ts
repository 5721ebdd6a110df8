import { parseArgs } from 'node:util';
import { formatComparison } from '../fixtures/rootfs/comparison-table.ts';
import {
  type Backup,
  type Bench,
  efiDisk,
  MiB,
  type Restore,
  startBench,
} from '../test/e2e/support/bench.ts';
import { ContainerBench } from '../test/e2e/support/containers.ts';

/**
 * The main job on real input: a VM that is being written to, four backups, and the restore of two; then a
 * container with every attribute that a file can have, backed up and restored.
 */
const { values } = parseArgs({ options: { json: { type: 'boolean', default: false } } });
const disks = [{ device: 'drive-scsi0', size: 2048 * MiB, seed: 1 }, efiDisk];
const firewall = Buffer.from('[OPTIONS]\n\nenable: 0\n');
/** Where the guest keeps writing while it is backed up. */
const load = {
  writesPerSecond: 100,
  targets: [{ device: 'drive-scsi0', offset: 64 * MiB, length: 32 * MiB }],
};

const say = (text: string) => {
  if (!values.json) console.log(text);
};
const step = (text: string) => say(`\n== ${text}`);

async function backUp(bench: Bench): Promise<Backup> {
  const backup = await bench.backUp();
  say(backup.log);
  if (backup.exitCode !== 0) throw new Error(`the backup failed: ${backup.log}`);
  return backup;
}

/** Restores an archive as another VM and compares each disk with the original's instant. */
async function restore(bench: Bench, backup: Backup): Promise<boolean> {
  const { exitCode, log, differing }: Restore = await bench.restore(backup);
  say(log);
  for (const [device, sha256] of backup.sha256) {
    say(`${device}: ${sha256} ${differing.includes(device) ? 'DIFFERS' : 'identical'}`);
  }
  return exitCode === 0 && differing.length === 0;
}

/** How many entries the container had, and how many attributes came back otherwise. */
async function container(): Promise<{ entries: number; differences: number }> {
  const bench = await ContainerBench.create();
  try {
    await bench.add({ vmid: 101, mountPoints: true });
    const { exitCode, log, volids } = await bench.backUp([101]);
    say(log);
    if (exitCode !== 0) throw new Error(`the backup failed: ${log}`);
    const restored = await bench.restore(volids[0] ?? '', 901);
    say(restored.log);
    if (restored.exitCode !== 0) throw new Error(`the restore failed: ${restored.log}`);
    const comparison = await bench.compare(101, 901);
    say(formatComparison(comparison));
    return { entries: comparison.entries, differences: comparison.differences.length };
  } finally {
    await bench.close();
  }
}

async function main(bench: Bench): Promise<boolean> {
  await bench.vm.startLoad(load);
  step('full backup');
  const full = await backUp(bench);
  step('incremental backup, the guest has written in between');
  await bench.vm.write('drive-scsi0', 512 * MiB, { pattern: 0x5a, length: 10 * MiB });
  const incremental = await backUp(bench);
  await bench.vm.stopLoad();
  step('incremental backups, the guest is idle from here on');
  await backUp(bench);
  const idle = await backUp(bench);
  step('restore of the full backup');
  const identical = [await restore(bench, full)];
  step('restore of the incremental backup');
  identical.push(await restore(bench, incremental));

  step('backup and restore of a container');
  const compared = await container();

  const { dirtyBytes, readBytes } = incremental;
  const ok =
    identical.every(Boolean) &&
    readBytes === dirtyBytes &&
    idle.readBytes === 0 &&
    compared.differences === 0;
  const summary = {
    full: { bytes: full.readBytes, seconds: full.seconds },
    incremental: { dirtyBytes, readBytes, seconds: incremental.seconds },
    idle: { readBytes: idle.readBytes },
    restore: { identical: identical.every(Boolean) },
    container: compared,
  };
  if (values.json) console.log(JSON.stringify(summary));
  step('summary');
  say(`full         ${full.readBytes} bytes read in ${full.seconds.toFixed(1)} s`);
  say(
    `incremental  ${readBytes} bytes read, ${dirtyBytes} dirty, ${incremental.seconds.toFixed(1)} s`,
  );
  say(`idle         ${idle.readBytes} bytes read`);
  say(`restored     ${identical.every(Boolean) ? 'bit for bit' : 'NOT IDENTICAL'}`);
  say(`container    ${compared.entries} entries, ${compared.differences} differences`);
  return ok;
}

step('a VM with 2 GiB of mixed data, and a guest that keeps writing');
const bench = await startBench({ disks, firewall });
try {
  process.exitCode = (await main(bench)) ? 0 : 1;
} finally {
  await bench.close();
}
