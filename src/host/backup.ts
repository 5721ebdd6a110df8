import { BackupError, cancelled, messageOf } from '../protocol/errors.ts';
import type { Handlers, Params } from '../protocol/methods.ts';
import { archiveName } from '../protocol/model.ts';
import type { ContainerBackup, Guest, VmBackup } from '../sdk/provider.ts';
import { sleep } from '../toolbox/abort.ts';
import { collectStaleRestores } from '../toolbox/stale-restores.ts';
import { runContainerBackup } from './container-run.ts';
import type { Context } from './session.ts';
import { noteBitmaps, planBitmaps, runVmBackup } from './vm-run.ts';

type BackupMethod =
  | 'job_init'
  | 'job_cleanup'
  | 'backup_init'
  | 'backup_get_mechanism'
  | 'backup_vm_query_incremental'
  | 'backup_vm'
  | 'backup_container_prepare'
  | 'backup_container'
  | 'backup_cleanup'
  | 'backup_handle_log_file';

/** A provider that is deaf to its signal must not hold up the other guests. */
const stopMs = 10_000;

/** One guest of a job, from `backup_init` to the next one's or the job's end. */
interface Task<Backup = VmBackup | ContainerBackup> {
  readonly vmid: number;
  readonly backup: Backup;
  /** Set once the provider's `run` has resolved; nothing else says that there is an archive [A10]. */
  committed: boolean;
  /** While the provider runs: aborts that and resolves when it has ended. */
  stop?: () => Promise<void>;
}

const isVm = (task: Task): task is Task<VmBackup> => 'planBitmaps' in task.backup;
const isContainer = (task: Task): task is Task<ContainerBackup> => !isVm(task);

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
      backup_get_mechanism: async ({ vmid }) => {
        const task = this.#taskOf(vmid);
        return { mechanism: isVm(task) ? task.backup.mechanism : 'directory' };
      },
      backup_vm_query_incremental: (params) =>
        planBitmaps(this.#context, this.#vmTask(params.vmid).backup, params),
      backup_vm: async (params, signal) => {
        const task = this.#vmTask(params.vmid);
        const volumes = await this.#run(task, signal, (stopped) =>
          runVmBackup(this.#context, task.backup, params, stopped),
        );
        await noteBitmaps(this.#context, task.vmid, task.backup, volumes);
        return {};
      },
      backup_container_prepare: async ({ vmid }) => {
        this.#containerTask(vmid);
        return {};
      },
      backup_container: async (params, signal) => {
        const task = this.#containerTask(params.vmid);
        await this.#run(task, signal, (stopped) =>
          runContainerBackup(this.#context, task.backup, params, stopped),
        );
        return {};
      },
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
    await collectStaleRestores(this.#context);
    await this.#context.provider.startJob?.({ startTime });
    this.#open = true;
    this.#context.lifecycle.hold();
  }

  async #init(params: Params<'backup_init'>) {
    const { vmid, vmtype } = params;
    const startTime = new Date(params['start-time'] * 1000);
    await this.#start(startTime);
    await this.#finishTask({ success: false, error: 'another backup has begun' });
    const backup = await this.#begin({ vmid, vmtype, startTime });
    this.#task = { vmid, backup, committed: false };
    return { 'archive-name': archiveName.parse(backup.archiveName) };
  }

  #begin(guest: Guest): Promise<VmBackup | ContainerBackup> {
    const { provider, title } = this.#context;
    if (guest.vmtype === 'lxc') {
      if (provider.backupContainer !== undefined) return provider.backupContainer(guest);
      throw new BackupError(`${title} does not back up containers`);
    }
    if (provider.backupVm !== undefined) return provider.backupVm(guest);
    throw new BackupError(`${title} does not back up VMs`);
  }

  /** Runs the provider's part and believes in its commit only when the archive is there. */
  async #run<T>(
    task: Task,
    signal: AbortSignal,
    work: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    if (task.committed) throw new BackupError(`guest ${task.vmid} has been backed up already`);
    if (task.stop) throw new BackupError(`guest ${task.vmid} is being backed up already`);
    const abort = new AbortController();
    const run = (async () => {
      const result = await work(AbortSignal.any([signal, abort.signal]));
      await this.#assertWritten(task);
      task.committed = true;
      return result;
    })();
    let stopped: Promise<unknown> | undefined;
    task.stop = async () => {
      // A cancelled one has had its time already, and PVE's KILL is near [A3].
      if (signal.aborted) return;
      abort.abort(cancelled());
      stopped ??= Promise.race([run.catch(() => undefined), sleep(stopMs)]);
      await stopped;
    };
    try {
      return await run;
    } finally {
      delete task.stop;
    }
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

  async #cleanup(params: Params<'backup_cleanup'>) {
    const { vmid, success, info } = params;
    const task = this.#task?.vmid === vmid ? this.#task : undefined;
    // A child of PVE's that was killed waits for nothing any more.
    await task?.stop?.();
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
    await task?.stop?.();
    if (task !== undefined && !task.committed) await task.backup.finish(outcome);
  }

  #taskOf(vmid: number): Task {
    if (this.#task?.vmid === vmid) return this.#task;
    throw new BackupError(`no backup of guest ${vmid} has begun: backup_init comes first`);
  }

  #vmTask(vmid: number): Task<VmBackup> {
    const task = this.#taskOf(vmid);
    if (isVm(task)) return task;
    throw new BackupError(`guest ${vmid} is a container`);
  }

  #containerTask(vmid: number): Task<ContainerBackup> {
    const task = this.#taskOf(vmid);
    if (isContainer(task)) return task;
    throw new BackupError(`guest ${vmid} is a VM`);
  }
}
