import { parseArgs } from 'node:util';
import {
  type Backup,
  type Bench,
  efiDisk,
  MiB,
  type Restore,
  startBench,
} from '../test/e2e/support/bench.ts';

/** The main job on real input: a VM that is being written to, four backups, and the restore of two. */
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

  const { dirtyBytes, readBytes } = incremental;
  const ok = identical.every(Boolean) && readBytes === dirtyBytes && idle.readBytes === 0;
  const summary = {
    full: { bytes: full.readBytes, seconds: full.seconds },
    incremental: { dirtyBytes, readBytes, seconds: incremental.seconds },
    idle: { readBytes: idle.readBytes },
    restore: { identical: identical.every(Boolean) },
  };
  if (values.json) console.log(JSON.stringify(summary));
  step('summary');
  say(`full         ${full.readBytes} bytes read in ${full.seconds.toFixed(1)} s`);
  say(
    `incremental  ${readBytes} bytes read, ${dirtyBytes} dirty, ${incremental.seconds.toFixed(1)} s`,
  );
  say(`idle         ${idle.readBytes} bytes read`);
  say(`restored     ${identical.every(Boolean) ? 'bit for bit' : 'NOT IDENTICAL'}`);
  return ok;
}

step('a VM with 2 GiB of mixed data, and a guest that keeps writing');
const bench = await startBench({ disks, firewall });
try {
  process.exitCode = (await main(bench)) ? 0 : 1;
} finally {
  await bench.close();
}
