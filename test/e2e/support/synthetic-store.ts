import { createHash } from 'node:crypto';
import { lstat, mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { PveNode } from '../../../fixtures/pve/pve-node.ts';
import { sha256Of } from '../../../fixtures/qemu/mixed-data.ts';
import { readCluster } from '../../../src/host/open-storage.ts';
import { nodePaths } from '../../../src/host/paths.ts';
import definition from '../../../src/providers/directory/index.ts';
import type { BitmapLedger, Provider } from '../../../src/sdk/provider.ts';
import {
  chunk,
  emptyLedger,
  extent,
  ledgerOf,
  MemoryVolume,
  makeLog,
} from '../../providers/directory/memory-volume.ts';
import { guestConfig } from './guest.ts';

const device = 'drive-scsi0';
const storeid = 'vault';

export interface SyntheticArchive {
  readonly name: string;
  readonly volid: string;
  readonly sha256: string;
}

/** A node with a directory store whose archives are made through the provider, without QEMU and vzdump. */
export class SyntheticStore {
  readonly node: PveNode;
  readonly path: string;
  readonly provider: Provider;
  readonly #end = new AbortController();
  #newId = 900;

  private constructor(
    node: PveNode,
    options: Record<string, string> & { path: string },
    cluster: string,
  ) {
    this.node = node;
    this.path = options.path;
    const { runDir, cacheDir } = nodePaths(join(node.root, 'run/synthetic'), storeid);
    this.provider = definition.open({
      id: storeid,
      options,
      secrets: {},
      log: makeLog(),
      cluster,
      runDir,
      cacheDir,
      signal: this.#end.signal,
    });
  }

  static async create(options: Readonly<Record<string, string>> = {}): Promise<SyntheticStore> {
    const node = await PveNode.create();
    const path = join(node.root, 'store');
    await mkdir(path);
    const { runDir, cacheDir } = nodePaths(join(node.root, 'run/synthetic'), storeid);
    await mkdir(runDir, { recursive: true });
    await mkdir(cacheDir, { recursive: true });
    await node.addStorage(storeid, 'bridge-dir', { content: 'backup', ...options, path });
    return new SyntheticStore(
      node,
      { ...options, path },
      await readCluster(nodePaths(node.root, storeid)),
    );
  }

  /** Restores through PVE; true if the disk is bit for bit what was backed up. */
  async restores({ volid, sha256 }: SyntheticArchive): Promise<boolean> {
    this.#newId += 1;
    const { exitCode, all } = await this.node.qmrestore(volid, this.#newId);
    if (exitCode !== 0) throw new Error(all);
    const path = this.node.restoredPath(this.#newId, device);
    const same = (await sha256Of(path)) === sha256;
    await rm(path);
    return same;
  }

  /** Names of the archives that PVE lists. */
  async list(): Promise<string[]> {
    const list = await this.node.pvesmJson<{ volid: string }[]>(['list', storeid]);
    return list.map(({ volid }) => volid.replace(`${storeid}:backup/`, '')).sort();
  }

  /** Bytes that the store takes up on its file system. */
  allocatedBytes(folder = this.path): Promise<number> {
    return allocatedBytes(folder);
  }

  async close(): Promise<void> {
    this.#end.abort();
    await this.provider.close?.();
    await this.node.destroy();
  }
}

async function allocatedBytes(path: string): Promise<number> {
  const stats = await lstat(path);
  let sum = stats.blocks * 512;
  if (!stats.isDirectory()) return sum;
  for (const name of await readdir(path)) sum += await allocatedBytes(join(path, name));
  return sum;
}

/** The content of a chunk, which differs by seed. */
function chunkOf(seed: number): Buffer {
  return Buffer.alloc(chunk, createHash('sha512').update(String(seed)).digest());
}

/** A VM with one disk in memory, and the bitmap of it. */
export class SyntheticGuest {
  readonly vmid: number;
  readonly #store: SyntheticStore;
  readonly #disk: Buffer;
  readonly #dirty = new Set<number>();
  #ledger: BitmapLedger = emptyLedger;

  /** A disk of one chunk per seed. */
  constructor(store: SyntheticStore, vmid: number, seeds: readonly number[]) {
    this.vmid = vmid;
    this.#store = store;
    this.#disk = Buffer.concat(seeds.map(chunkOf));
  }

  get chunks(): number {
    return this.#disk.length / chunk;
  }

  /** Replaces a chunk of the disk. */
  write(position: number, seed: number): void {
    chunkOf(seed).copy(this.#disk, position * chunk);
    this.#dirty.add(position);
  }

  /** Incremental where the provider plans it so. `onRead` is awaited before each read. */
  async backUp(
    startTime: Date,
    onRead: () => Promise<void> = async () => {},
  ): Promise<SyntheticArchive> {
    const { provider } = this.#store;
    const backup = await provider.backupVm?.({ vmid: this.vmid, vmtype: 'qemu', startTime });
    if (backup === undefined) throw new Error('no backups of VMs');
    const volume = new MemoryVolume(device, Buffer.from(this.#disk));
    const read = volume.read.bind(volume);
    volume.read = async (offset, length) => {
      await onRead();
      return read(offset, length);
    };
    const { size } = volume;
    let success = false;
    try {
      const plan = await backup.planBitmaps(new Map([[device, size]]), this.#ledger);
      if (plan.get(device) === 'use') {
        const dirty = [...this.#dirty].sort((a, b) => a - b);
        volume.dirty = dirty.map((position) => extent(position * chunk, chunk));
      }
      const config = guestConfig(this.vmid, [{ device, size }]);
      await backup.run({
        guestConfig: Buffer.from(`${config}#qmdump#map:scsi0:${device}:local:raw:\n`),
        volumes: new Map([[device, volume]]),
        log: makeLog(),
        signal: new AbortController().signal,
      });
      success = true;
    } finally {
      await backup.finish({ success });
    }
    this.#ledger = ledgerOf({ [device]: { archiveId: backup.archiveId, size } });
    this.#dirty.clear();
    const { archiveName: name } = backup;
    const sha256 = createHash('sha256').update(volume.data).digest('hex');
    return { name, volid: `${storeid}:backup/${name}`, sha256 };
  }
}
