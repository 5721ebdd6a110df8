import { mkdir, readFile, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  PveNode,
  type PveNodeOptions,
  type VzdumpOptions,
} from '../../../fixtures/pve/pve-node.ts';
import type { LoadSpec } from '../../../fixtures/qemu/guest-load.ts';
import { sha256Of } from '../../../fixtures/qemu/mixed-data.ts';
import {
  type DiskSpec,
  VirtualMachine,
  type VmSpec,
} from '../../../fixtures/qemu/virtual-machine.ts';
import { archivesIn, guestConfig } from './guest.ts';

export const KiB = 1024;
export const MiB = 1024 * KiB;
/** A disk that is no multiple of anything but 16 KiB. */
export const efiDisk: DiskSpec = { device: 'drive-efidisk0', size: 528 * KiB, seed: 2 };

export interface BenchOptions {
  readonly disks: readonly DiskSpec[];
  readonly vmid?: number;
  readonly load?: LoadSpec;
  readonly fleecing?: VmSpec['fleecing'];
  /** Options of storages of type bridge-dir by their ids; paths are below ROOT. `vault` if left out. */
  readonly storages?: Readonly<Record<string, Readonly<Record<string, string | number>>>>;
  /** What the archive's config has to be; one that names the disks if left out. */
  readonly config?: Uint8Array;
  readonly firewall?: Uint8Array;
  readonly node?: PveNodeOptions;
}

/** What a restore is compared with. */
export interface Archive {
  readonly volid: string;
  /** Per device, of the disk at the instant of the backup. */
  readonly sha256: ReadonlyMap<string, string>;
}

/** One run of vzdump, whether it failed or not. */
export interface Backup extends Archive {
  readonly exitCode: number | undefined;
  /** What vzdump printed. */
  readonly log: string;
  readonly seconds: number;
  /** By QEMU's own count, at the instant of the backup, cut at the end of the disk [E2]. */
  readonly dirtyBytes: number;
  /** By the bridge's own count; undefined if nothing was copied to the end. */
  readonly backedUpBytes: number | undefined;
  /** Of these; the rest is known to be zero, which QEMU tells in full backups only. */
  readonly readBytes: number | undefined;
}

export interface Restore {
  readonly exitCode: number | undefined;
  readonly log: string;
  readonly newId: number;
  /** Devices that are not bit for bit what they were at the instant of the backup. */
  readonly differing: readonly string[];
}

/** A node, a directory store and a VM; archives are restored as new VMs and compared disk by disk. */
export class Bench {
  readonly node: PveNode;
  readonly vmid: number;
  /** The path of the first storage. */
  readonly store: string;
  readonly #storeid: string;
  #vm: VirtualMachine;
  #disks: readonly DiskSpec[];
  #lastStart = 0;
  #newId = 900;

  constructor(
    parts: Pick<Bench, 'node' | 'vm' | 'vmid' | 'store'> & { storeid: string },
    disks: readonly DiskSpec[],
  ) {
    this.node = parts.node;
    this.#vm = parts.vm;
    this.vmid = parts.vmid;
    this.store = parts.store;
    this.#storeid = parts.storeid;
    this.#disks = disks;
  }

  get vm(): VirtualMachine {
    return this.#vm;
  }

  /** Destroys the VM and makes another one with the same id, whose disks are filled from their seeds. */
  async replaceVm(disks: readonly DiskSpec[]): Promise<void> {
    await this.#vm.stop();
    const { node, vmid } = this;
    const spec = { root: node.root, vmid, disks, keepInstantCopy: true };
    this.#vm = await VirtualMachine.start(spec);
    await this.setDisks(disks);
  }

  /** The VM's disks after a restart with other ones, in config as well. */
  async restartWith(disks: readonly DiskSpec[]): Promise<void> {
    await this.vm.restart(disks);
    await this.setDisks(disks);
  }

  /** What the config says of the disks, and what backups are compared with. */
  async setDisks(disks: readonly DiskSpec[]): Promise<void> {
    this.#disks = disks;
    await this.node.addVm(this.vmid, guestConfig(this.vmid, disks));
  }

  async backUp(options: Partial<VzdumpOptions> = {}): Promise<Backup> {
    const storage = options.storage ?? this.#storeid;
    await this.nextSecond();
    const before = (await copies(this.node, storage)).length;
    const start = Date.now();
    const { exitCode, all = '' } = await this.node.vzdump([this.vmid], { ...options, storage });
    const seconds = (Date.now() - start) / 1000;
    const [volid = ''] = this.archivesIn(all, storage);
    const copied = (await copies(this.node, storage)).slice(before).pop();
    const counts = { backedUpBytes: copied?.dirty, readBytes: copied?.read };
    return { exitCode, log: all, seconds, volid, ...counts, ...(await this.#instant()) };
  }

  /** The volids that a task log names; two backups of a guest cannot start in one second. */
  archivesIn(log: string, storage = this.#storeid): string[] {
    const volids = archivesIn(log, storage);
    const starts = volids.map((volid) => Date.parse(volid.slice(-20)));
    this.#lastStart = Math.max(this.#lastStart, ...starts);
    return volids;
  }

  /** Waits until a backup gets another name than the last one. */
  async nextSecond(): Promise<void> {
    const left = this.#lastStart + 1000 - Date.now();
    if (left > 0) await sleep(left);
  }

  /** Restores as a new VM; the disks are removed once they are compared. */
  async restore(archive: Archive, options: { taint?: boolean } = {}): Promise<Restore> {
    if (archive.sha256.size === 0) throw new Error('nothing to compare a restore with');
    this.#newId += 1;
    const newId = this.#newId;
    const { exitCode, all = '' } = await this.node.qmrestore(archive.volid, newId, options);
    const differing: string[] = [];
    for (const [device, expected] of archive.sha256) {
      const path = this.node.restoredPath(newId, device);
      if ((await sha256Of(path).catch(() => '')) !== expected) differing.push(device);
      await rm(path, { force: true });
    }
    return { exitCode, log: all, newId, differing };
  }

  async close(): Promise<void> {
    await this.vm.stop();
    await this.node.destroy();
  }

  async #instant(): Promise<Pick<Backup, 'sha256' | 'dirtyBytes'>> {
    const sha256 = new Map<string, string>();
    let dirtyBytes = 0;
    for (const { device, size } of this.#disks) {
      const digest = await this.vm.snapshotSha256(device).catch(() => undefined);
      if (digest === undefined) continue;
      sha256.set(device, digest);
      dirtyBytes += Math.min(this.vm.dirtyBytes(device), size);
    }
    return { sha256, dirtyBytes };
  }
}

/** Starts the VM and sets up the storages. */
export async function startBench(options: BenchOptions): Promise<Bench> {
  const { disks, vmid = 100, load, fleecing, firewall } = options;
  const node = await PveNode.create(options.node);
  const storages = Object.entries(options.storages ?? { vault: {} });
  const pathOf = (more?: { path?: string | number }) =>
    resolve(node.root, String(more?.path ?? 'store'));
  const [storeid = '', first] = storages[0] ?? [];
  const store = pathOf(first);
  for (const [id, more] of storages) {
    const path = pathOf(more);
    await mkdir(path, { recursive: true });
    await node.addStorage(id, 'bridge-dir', { content: 'backup', ...more, path });
  }
  await node.addVm(vmid, options.config ?? guestConfig(vmid, disks), firewall);
  const vm = await VirtualMachine.start({
    root: node.root,
    vmid,
    disks,
    keepInstantCopy: true,
    ...(load && { load }),
    ...(fleecing && { fleecing }),
  }).catch(async (error: unknown) => {
    await node.destroy();
    throw error;
  });
  return new Bench({ node, vm, vmid, store, storeid }, disks);
}

/** What each backup copied, in bytes, by the storage's log. */
async function copies(node: PveNode, storage: string): Promise<{ dirty: number; read: number }[]> {
  const path = join(node.root, `var/log/pve-backup-bridge/${storage}.log`);
  const lines = (await readFile(path, 'utf8').catch(() => '')).split('\n');
  return lines
    .filter((line) => line.includes('"msg":"copied"'))
    .map((line) => JSON.parse(line) as { dirty: number; read: number });
}
