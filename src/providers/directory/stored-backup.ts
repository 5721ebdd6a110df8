import { randomUUID } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { BackupError } from '../../protocol/errors.ts';
import type { ContainerBackupInput, Guest, VmBackupInput } from '../../sdk/provider.ts';
import type { Lock } from '../../toolbox/lock.ts';
import { sha256 } from './archive-members.ts';
import { type ArchiveRecord, archiveSizeOf, encodeRecord } from './archive-record.ts';
import { isFull, storeError, withFile } from './files.ts';
import { archiveNameOf, chunkSize, member } from './layout.ts';
import { RunDirectory } from './run-directory.ts';
import type { Store } from './store.ts';
import { sweep, wantSweep } from './sweep.ts';

/** Bytes of a task log that are kept. */
const maxLog = 16 * 1024 * 1024;
const patienceMs = 3000;
/** PVE kills 5 s after TERM [A3]. */
const cancelledMs = 500;

type Input = Pick<
  VmBackupInput & ContainerBackupInput,
  'guestConfig' | 'firewallConfig' | 'log' | 'signal'
>;

/** What a backup has stored next to the configs. */
export type Stored = Pick<ArchiveRecord, 'volumes' | 'container' | 'files' | 'storedBytes'>;

/** Where a backup writes, for whom, and the lock by which it is known to be alive. */
export interface Reservation {
  readonly store: Store;
  readonly guest: Guest;
  /** Says in the archive what wrote it. */
  readonly tool: string;
  readonly directory: RunDirectory;
  readonly lock: Lock;
  /** Told once whether the backup was cancelled. */
  readonly onEnd: (cancelled: boolean) => void;
}

/** Reserves the archive's name; keeps sweeps and the collector of leftovers away. */
export async function reserve(
  plan: Pick<Reservation, 'store' | 'guest' | 'tool' | 'onEnd'>,
): Promise<Reservation> {
  const { store, guest } = plan;
  await store.open();
  const lock = await store.share();
  try {
    const directory = await RunDirectory.reserve(store.layout, archiveNameOf(guest), store.sync);
    return { ...plan, directory, lock };
  } catch (error) {
    await lock.release();
    throw storeError(store.layout.path, `cannot back up ${labelOf(guest)}`, error);
  }
}

/** What the backups of VMs and of containers have in common; how their disks are stored is the subclass's. */
export abstract class StoredBackup<Run extends Input> {
  readonly archiveName: string;
  readonly archiveId = randomUUID();
  protected readonly store: Store;
  protected readonly guest: Guest;
  readonly #reservation: Reservation;
  #signal: AbortSignal | undefined;
  #running: Promise<void> | undefined;
  #archiveSize = 0;
  #full = false;
  #ended: Promise<void> | undefined;

  constructor(reservation: Reservation) {
    this.archiveName = archiveNameOf(reservation.guest);
    this.store = reservation.store;
    this.guest = reservation.guest;
    this.#reservation = reservation;
  }

  /** Writes everything but the configs and archive.json. Leaves no file open, also when it fails. */
  protected abstract write(input: Run, directory: RunDirectory): Promise<Stored>;

  run(input: Run): Promise<void> {
    this.#signal = input.signal;
    this.#running = this.#run(input);
    return this.#running;
  }

  async finish(): Promise<{ archiveSize: number }> {
    this.#ended ??= this.#end();
    await this.#ended;
    return { archiveSize: this.#reservation.directory.committed ? this.#archiveSize : 0 };
  }

  /** Goes into the archive, if there is one. */
  async handleLogFile(path: string): Promise<void> {
    const { directory } = this.#reservation;
    if (!directory.committed) return;
    const { O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW } = constants;
    const flags = O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW;
    await withFile(directory.path(member.log), flags, (file) =>
      writeFile(file, createReadStream(path, { end: maxLog - 1 })),
    );
  }

  async #run(input: Run): Promise<void> {
    const { directory, lock } = this.#reservation;
    try {
      await this.#writeAll(input, directory);
      await directory.commit(input.signal, () => {
        // Without the lock a sweep may have taken chunks, or all of this run, for garbage.
        if (!lock.held) throw new BackupError('the lock of the store was lost: try again');
      });
    } catch (error) {
      this.#full = isFull(error);
      throw storeError(this.store.layout.path, `cannot back up ${labelOf(this.guest)}`, error);
    }
    await lock.release();
  }

  /** Everything but the commit; archive.json comes last. */
  async #writeAll(input: Run, directory: RunDirectory): Promise<void> {
    const files: Record<string, string> = {};
    let configBytes = 0;
    for (const [file, content] of [
      [member.guestConfig, input.guestConfig],
      [member.firewallConfig, input.firewallConfig],
    ] as const) {
      // A container without one comes with an empty one [B8].
      if (content === undefined || (content.length === 0 && file === member.firewallConfig)) {
        continue;
      }
      await writeFile(directory.path(file), content, { flag: 'wx' });
      files[file] = sha256(content);
      configBytes += content.length;
    }
    const stored = await this.write(input, directory);
    const record: ArchiveRecord = {
      format: 1,
      archiveId: this.archiveId,
      vmid: this.guest.vmid,
      vmtype: this.guest.vmtype,
      startTime: this.guest.startTime.toISOString(),
      tool: this.#reservation.tool,
      chunkSize,
      ...stored,
      files: { ...files, ...stored.files },
      storedBytes: configBytes + stored.storedBytes,
    };
    this.#archiveSize = archiveSizeOf(record);
    input.signal.throwIfAborted();
    await writeFile(directory.path(member.record), encodeRecord(record), { flag: 'wx' });
  }

  async #end(): Promise<void> {
    const { store } = this;
    const { directory, lock, onEnd } = this.#reservation;
    const cancelled = store.signal.aborted || this.#signal?.aborted === true;
    const hasChunks = this.guest.vmtype === 'qemu';
    const writers = Promise.allSettled([this.#running, store.chunks.settled()]);
    try {
      if (hasChunks && !directory.committed) await wantSweep(store);
      await directory.discard(writers, cancelled ? cancelledMs : patienceMs);
    } catch (error) {
      throw storeError(store.layout.path, 'cannot clean up after the backup', error);
    } finally {
      await lock.release();
      onEnd(cancelled);
    }
    // What the next guest of the job needs at once; otherwise there is time until the job's end.
    if (hasChunks && this.#full && !cancelled) await sweep(store);
  }
}

function labelOf({ vmid, vmtype }: Guest): string {
  return `${vmtype === 'qemu' ? 'VM' : 'container'} ${vmid}`;
}
