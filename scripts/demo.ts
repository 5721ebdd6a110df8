import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { PveNode } from '../fixtures/pve/pve-node.ts';
import { sha256Of } from '../fixtures/qemu/mixed-data.ts';
import { VirtualMachine } from '../fixtures/qemu/virtual-machine.ts';

/** The main job on real input: a VM that is being written to, three backups, and the restore of two. */
const { values } = parseArgs({ options: { json: { type: 'boolean', default: false } } });
const MiB = 1024 * 1024;
const vmid = 100;
const storage = 'vault';
const disks = [
  { device: 'drive-scsi0', size: 2048 * MiB, seed: 1 },
  { device: 'drive-efidisk0', size: 528 * 1024, seed: 2 },
];
const config = `#the demo's guest
boot: order=scsi0
cores: 1
efidisk0: local:100/vm-100-disk-1.raw,efitype=4m,size=528K
memory: 32
name: demo
scsi0: local:100/vm-100-disk-0.raw,size=2G
`;
/** Where the guest keeps writing while it is backed up. */
const load = {
  writesPerSecond: 100,
  targets: [{ device: 'drive-scsi0', offset: 64 * MiB, length: 32 * MiB }],
};

interface Backup {
  readonly volid: string;
  readonly seconds: number;
  /** Per device, of the disk at the instant of the backup. */
  readonly sha256: ReadonlyMap<string, string>;
  /** By QEMU's own count, and by the bridge's. */
  readonly dirtyBytes: number;
  readonly readBytes: number;
}

const say = (text: string) => {
  if (!values.json) console.log(text);
};
const step = (text: string) => say(`\n== ${text}`);

/** What the bridge's log says it copied last. */
async function lastCopied(node: PveNode): Promise<{ read: number }> {
  const log = await readFile(join(node.root, `var/log/pve-backup-bridge/${storage}.log`), 'utf8');
  const line =
    log
      .split('\n')
      .filter((text) => text.includes('"msg":"copied"'))
      .pop() ?? '{}';
  return JSON.parse(line);
}

async function backUp(node: PveNode, vm: VirtualMachine): Promise<Backup> {
  const start = Date.now();
  const { exitCode, all } = await node.vzdump([vmid], { storage });
  const seconds = (Date.now() - start) / 1000;
  say(all ?? '');
  if (exitCode !== 0) throw new Error(`the backup failed: ${all}`);
  const volid = /creating .* archive '([^']+)'/.exec(all ?? '')?.[1] ?? '';
  const sha256 = new Map<string, string>();
  for (const { device } of disks) sha256.set(device, await vm.snapshotSha256(device));
  const dirtyBytes = disks.reduce((sum, { device }) => sum + vm.dirtyBytes(device), 0);
  const { read } = await lastCopied(node);
  return { volid: `${storage}:backup/${volid}`, seconds, sha256, dirtyBytes, readBytes: read };
}

/** Restores an archive as another VM and compares each disk with the original's instant. */
async function restore(node: PveNode, backup: Backup, newId: number): Promise<boolean> {
  const { exitCode, all } = await node.qmrestore(backup.volid, newId);
  say(all ?? '');
  let identical = exitCode === 0;
  for (const [device, expected] of backup.sha256) {
    const got = await sha256Of(node.restoredPath(newId, device)).catch(() => 'missing');
    say(`${device}: ${got} ${got === expected ? 'identical' : `is not ${expected}`}`);
    identical &&= got === expected;
  }
  return identical;
}

async function main(node: PveNode, stack: { vm?: VirtualMachine }): Promise<boolean> {
  const store = join(node.root, 'store');
  await mkdir(store);
  await node.addStorage(storage, 'bridge-dir', { path: store, content: 'backup' });
  await node.addVm(vmid, config, '[OPTIONS]\n\nenable: 0\n');
  step('a VM with 2 GiB of mixed data, and a guest that keeps writing');
  const vm = await VirtualMachine.start({ root: node.root, vmid, disks, keepInstantCopy: true });
  stack.vm = vm;
  await vm.startLoad(load);
  step('full backup');
  const full = await backUp(node, vm);
  step('incremental backup, the guest has written in between');
  await vm.write('drive-scsi0', 512 * MiB, { pattern: 0x5a, length: 10 * MiB });
  const incremental = await backUp(node, vm);
  await vm.stopLoad();
  step('incremental backups, the guest is idle from here on');
  await backUp(node, vm);
  const idle = await backUp(node, vm);
  step('restore of the full backup');
  const identical = [await restore(node, full, 901)];
  step('restore of the incremental backup');
  identical.push(await restore(node, incremental, 902));

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

const node = await PveNode.create();
const stack: { vm?: VirtualMachine } = {};
try {
  process.exitCode = (await main(node, stack)) ? 0 : 1;
} finally {
  await stack.vm?.stop();
  await node.destroy();
}
