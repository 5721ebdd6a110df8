import { BackupError, messageOf } from '../protocol/errors.ts';
import type { Handlers, Params } from '../protocol/methods.ts';
import { archiveName } from '../protocol/model.ts';
import type { DeviceName, VmBackup, VolumeSource } from '../sdk/provider.ts';
import { collectStaleExports } from '../toolbox/image-export.ts';
import { openLedger, recordBitmaps } from '../toolbox/ledger.ts';
import { openNbdVolume } from '../toolbox/nbd-volume.ts';
import { ReleaseStack } from '../toolbox/release.ts';
import type { Context } from './session.ts';

type BackupMethod =
  | 'job_init'
  | 'job_cleanup'
  | 'backup_init'
  | 'backup_get_mechanism'
  | 'backup_vm_query_incremental'
  | 'backup_vm'
  | 'backup_cleanup'
  | 'backup_handle_log_file';

/** One guest of a job, from `backup_init` to the next one's or the job's end. */
interface Task {
  readonly vmid: number;
  readonly backup: VmBackup;
  /** Set once the provider's `run` has resolved; nothing else says that there is an archive [A10]. */
  committed: boolean;
}

/** The methods of a backup job, in PVE's order [B2 to B14], and the order's enforcement. */
export class BackupJob {
  readonly #context: Context;
  #task: Task | undefined;
  #open = false;

  constructor(context: Context) {
    this.#context = context;
  }

  handlers(): Pick<Handlers, BackupMethod> {
    return {
      job_init: async (params) => {
        await this.#start(new Date(params['start-time'] * 1000));
        return {};
      },
      backup_init: (params) => this.#init(params),
      backup_get_mechanism: async (params) => ({
        mechanism: this.#taskOf(params.vmid).backup.mechanism,
      }),
      backup_vm_query_incremental: (params) => this.#plan(params),
      backup_vm: (params, signal) => this.#run(params, signal),
      backup_cleanup: (params) => this.#cleanup(params),
      backup_handle_log_file: (params) => this.#handleLogFile(params),
      job_cleanup: async () => {
        await this.close();
        return {};
      },
    };
  }

  /** Idempotent: PVE calls job_cleanup again when it dies, and the host when it ends [B14]. */
  async close(): Promise<void> {
    if (!this.#open) return;
    try {
      await this.#finishTask({ success: false, error: 'the job has ended' });
      await this.#context.provider.endJob?.();
    } finally {
      this.#open = false;
      this.#context.lifecycle.unhold();
    }
  }

  /** Also begun by `backup_init`: a host that replaces a dead one in mid-job gets no job_init. */
  async #start(startTime: Date): Promise<void> {
    if (this.#open) return;
    await collectStaleExports(this.#context.mounts, this.#context.log);
    await this.#context.provider.startJob?.({ startTime });
    this.#open = true;
    this.#context.lifecycle.hold();
  }

  async #init(params: Params<'backup_init'>) {
    const { provider, title } = this.#context;
    const startTime = new Date(params['start-time'] * 1000);
    await this.#start(startTime);
    await this.#finishTask({ success: false, error: 'another backup has begun' });
    const { vmid, vmtype } = params;
    if (vmtype === 'lxc') throw new BackupError(`${title} does not back up containers`);
    if (provider.backupVm === undefined) throw new BackupError(`${title} does not back up VMs`);
    const backup = await provider.backupVm({ vmid, vmtype, startTime });
    this.#task = { vmid, backup, committed: false };
    return { 'archive-name': archiveName.parse(backup.archiveName) };
  }

  async #plan(params: Params<'backup_vm_query_incremental'>) {
    const { root, storeid } = this.#context;
    const { backup, vmid } = this.#taskOf(params.vmid);
    const sizes = Object.entries(params.volumes).map(([device, v]) => [device, v.size] as const);
    // QEMU aborts when it is asked for access to no volume at all, and the guest dies with it [B6].
    if (sizes.length === 0) {
      throw new BackupError(`VM ${vmid} has no disk that is included in backups: include one`);
    }
    const ledger = await openLedger({ root, storeid, vmid });
    return Object.fromEntries(await backup.planBitmaps(new Map(sizes), ledger));
  }

  async #run(params: Params<'backup_vm'>, signal: AbortSignal) {
    const { root, storeid, log } = this.#context;
    const task = this.#taskOf(params.vmid);
    if (task.committed) throw new BackupError(`VM ${task.vmid} has been backed up already`);
    const stack = new ReleaseStack();
    try {
      const volumes = await this.#openVolumes(params.volumes, stack, signal);
      const limit = params['bandwidth-limit'];
      const firewall = params['firewall-config'];
      await task.backup.run({
        guestConfig: Buffer.from(params['guest-config'], 'base64'),
        ...(firewall !== undefined && { firewallConfig: Buffer.from(firewall, 'base64') }),
        volumes,
        ...(limit && { bandwidthLimit: limit }),
        log,
        signal,
      });
      await this.#assertWritten(task);
      task.committed = true;
      await recordBitmaps({
        root,
        storeid,
        vmid: task.vmid,
        archiveId: task.backup.archiveId,
        volumes: withBitmap(volumes),
      }).catch((error: unknown) =>
        log.warn(`the next backup will read everything: ${messageOf(error)}`),
      );
    } finally {
      await stack.release();
    }
    return {};
  }

  /** QEMU forgets what was dirty as soon as we report success [B15]: a provider's word is not enough. */
  async #assertWritten({ backup }: Task): Promise<void> {
    const { provider, title } = this.#context;
    await provider.archive(backup.archiveName).catch((cause: unknown) => {
      throw new BackupError(
        `${title} reported success but has no archive ${backup.archiveName}: ${messageOf(cause)}`,
        { cause },
      );
    });
  }

  async #openVolumes(
    volumes: Params<'backup_vm'>['volumes'],
    stack: ReleaseStack,
    signal: AbortSignal,
  ): Promise<Map<DeviceName, VolumeSource>> {
    const sources = new Map<DeviceName, VolumeSource>();
    for (const [device, volume] of Object.entries(volumes)) {
      const source = await openNbdVolume({
        device,
        size: volume.size,
        socketPath: volume['nbd-path'],
        bitmapMode: volume['bitmap-mode'],
        bitmapName: volume['bitmap-name'] ?? null,
        signal,
      });
      stack.add(`NBD connection of ${device}`, () => source.close());
      sources.set(device, source);
    }
    return sources;
  }

  async #cleanup(params: Params<'backup_cleanup'>) {
    const { vmid, success, info } = params;
    const task = this.#task?.vmid === vmid ? this.#task : undefined;
    // PVE takes a killed child, and a provider that did nothing, for a success [A10].
    if (success && !task?.committed) {
      await this.#finishTask({ success: false, error: 'nothing was committed' });
      throw new BackupError(
        `the backup of guest ${vmid} was not completed: no archive is known to be written`,
      );
    }
    if (task === undefined) return {};
    const outcome = info.error === undefined ? { success } : { success, error: info.error };
    const { archiveSize } = await task.backup.finish(outcome);
    return success ? { stats: { 'archive-size': archiveSize } } : {};
  }

  /** Never fails: a die here would skip the remaining guests of the job [B13]. */
  async #handleLogFile(params: Params<'backup_handle_log_file'>) {
    const task = this.#task?.vmid === params.vmid ? this.#task : undefined;
    try {
      await task?.backup.handleLogFile?.(params.path);
    } catch (error) {
      this.#context.log.warn(`the task log was not kept with the archive: ${messageOf(error)}`);
    }
    return {};
  }

  async #finishTask(outcome: { success: boolean; error?: string }): Promise<void> {
    const task = this.#task;
    this.#task = undefined;
    if (task !== undefined && !task.committed) await task.backup.finish(outcome);
  }

  #taskOf(vmid: number): Task {
    if (this.#task?.vmid === vmid) return this.#task;
    throw new BackupError(`no backup of guest ${vmid} has begun: backup_init comes first`);
  }
}

/** The sizes of the volumes whose bitmap this backup consumes. */
function withBitmap(volumes: ReadonlyMap<DeviceName, VolumeSource>): Map<DeviceName, number> {
  const sizes = new Map<DeviceName, number>();
  for (const [device, { bitmapMode, size }] of volumes) {
    if (bitmapMode !== 'none') sizes.set(device, size);
  }
  return sizes;
}
