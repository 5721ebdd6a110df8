import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { HostProcess } from '../../fixtures/host/host-process.ts';
import { ControlClient } from '../../fixtures/qemu/control-client.ts';
import { type DiskSpec, VirtualMachine } from '../../fixtures/qemu/virtual-machine.ts';

export type Compression = 'none' | 'brotli';
type BitmapMode = 'none' | 'new' | 'use';

const vmid = 100;
const bitmap = 'snapshot-access:store1';

/** A VM and a host on one node, called as PVE calls them, but without PVE: only the work is timed. */
export class BenchVm {
  readonly root: string;
  readonly vm: VirtualMachine;
  readonly disk: DiskSpec;
  readonly #control: ControlClient;
  #host: HostProcess | undefined;
  #startTime = 1_800_000_000;

  private constructor(root: string, vm: VirtualMachine, disk: DiskSpec, control: ControlClient) {
    this.root = root;
    this.vm = vm;
    this.disk = disk;
    this.#control = control;
  }

  static async start(disk: DiskSpec): Promise<BenchVm> {
    const root = await mkdtemp(join(tmpdir(), 'bench-'));
    const vm = await VirtualMachine.start({ root, vmid, disks: [disk], wholeReads: true });
    return new BenchVm(root, vm, disk, await ControlClient.connect(root, vmid));
  }

  get socket(): string {
    return join(this.root, 'nbd.sock');
  }

  get storePath(): string {
    return join(this.root, 'store');
  }

  /** A new empty store and a new host for it. */
  async openStore(compression: Compression): Promise<HostProcess> {
    await this.closeStore();
    await mkdir(this.storePath);
    const scfg = { path: this.storePath, 'bridge-dir-compression': compression };
    const provider = 'dist/providers/bridge-dir';
    this.#host = await HostProcess.open(scfg, { provider, root: this.root });
    return this.#host;
  }

  async closeStore(): Promise<void> {
    await this.#host?.call('shutdown');
    await this.#host?.exit;
    this.#host = undefined;
    await rm(this.storePath, { recursive: true, force: true });
    // There it is remembered that the path had a store.
    await rm(join(this.root, 'var/cache'), { recursive: true, force: true });
  }

  /** Runs `work` while the snapshot is exported on `socket`. */
  async withAccess<T>(mode: BitmapMode, work: (result: string) => Promise<T>): Promise<T> {
    const { device } = this.disk;
    const volumes = await this.#control.setup(bitmap, this.socket, { [device]: mode });
    try {
      return await work(volumes[device]?.['bitmap-mode'] ?? 'none');
    } finally {
      await this.#control.teardown(true);
    }
  }

  /** One backup; returns the archive's name, and the seconds from `backup_vm` to its commit. */
  async backUp(host: HostProcess): Promise<{ archive: string; seconds: number }> {
    const { device, size } = this.disk;
    const start = { vmid, vmtype: 'qemu', 'start-time': this.#startTime++ };
    const { 'archive-name': archive } = await ask(host, 'backup_init', start);
    const plan = { vmid, volumes: { [device]: { size } } };
    const modes = await ask(host, 'backup_vm_query_incremental', plan);
    const mode = modes[device] as BitmapMode;
    const seconds = await this.withAccess(mode, async (result) => {
      const volume = {
        size,
        'bitmap-mode': result,
        'nbd-path': this.socket,
        'bitmap-name': bitmap,
      };
      const begin = process.hrtime.bigint();
      await ask(host, 'backup_vm', { vmid, 'guest-config': '', volumes: { [device]: volume } });
      return Number(process.hrtime.bigint() - begin) / 1e9;
    });
    await ask(host, 'backup_cleanup', { vmid, vmtype: 'qemu', success: true, info: {} });
    return { archive: String(archive), seconds };
  }

  /** What the host says it read for its latest backup, in bytes. */
  async lastRead(): Promise<number> {
    const log = await readFile(join(this.root, 'var/log/pve-backup-bridge/store1.log'), 'utf8');
    const line = log
      .split('\n')
      .filter((text) => text.includes('"msg":"copied"'))
      .pop();
    return JSON.parse(line ?? '{}').read;
  }

  async close(): Promise<void> {
    await this.closeStore();
    this.#control.close();
    await this.vm.stop();
    await rm(this.root, { recursive: true, force: true });
  }
}

/** The result of a call that has to succeed. */
export async function ask(
  host: HostProcess,
  method: string,
  params: object,
): Promise<Record<string, unknown>> {
  const { result, error } = await host.call(method, params);
  if (error !== undefined) throw new Error(`${method}: ${error.message}`);
  return result ?? {};
}

/** So that neither side leaves its writing to the other. */
export async function syncDisks(path: string): Promise<void> {
  await execa('sync', ['-f', path]);
}
