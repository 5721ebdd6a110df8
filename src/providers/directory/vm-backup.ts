import { randomUUID } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { BackupError } from '../../protocol/errors.ts';
import type { BitmapRequest } from '../../protocol/model.ts';
import type {
  BitmapLedger,
  Guest,
  VmBackup,
  VmBackupInput,
  VolumeSizes,
} from '../../sdk/provider.ts';
import type { Lock } from '../../toolbox/lock.ts';
import { sha256 } from './archive-members.ts';
import { archiveSizeOf, encodeRecord } from './archive-record.ts';
import { type Base, findBases } from './base-archive.ts';
import { copyVolumes } from './copy-volumes.ts';
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

/** Where a backup writes, and the lock that keeps sweeps away from its chunks. */
interface Place {
  readonly directory: RunDirectory;
  readonly lock: Lock;
}

/** The backup of one VM into the store. */
class DirectoryVmBackup implements VmBackup {
  readonly archiveName: string;
  readonly archiveId = randomUUID();
  readonly mechanism = 'nbd';
  readonly #store: Store;
  readonly #guest: Guest;
  readonly #tool: string;
  readonly #place: Place;
  readonly #onEnd: (cancelled: boolean) => void;
  #signal: AbortSignal | undefined;
  #running: Promise<void> | undefined;
  #bases = new Map<string, Base>();
  #archiveSize = 0;
  #full = false;
  #ended: Promise<void> | undefined;

  constructor(
    store: Store,
    guest: Guest,
    tool: string,
    place: Place,
    onEnd: (cancelled: boolean) => void,
  ) {
    this.archiveName = archiveNameOf(guest);
    this.#store = store;
    this.#guest = guest;
    this.#tool = tool;
    this.#place = place;
    this.#onEnd = onEnd;
  }

  async planBitmaps(
    volumes: VolumeSizes,
    ledger: BitmapLedger,
  ): Promise<Map<string, BitmapRequest>> {
    this.#bases = await findBases(this.#store, this.#guest.vmid, volumes, ledger);
    return new Map(
      [...volumes.keys()].map((device) => [device, this.#bases.has(device) ? 'use' : 'new']),
    );
  }

  run(input: VmBackupInput): Promise<void> {
    this.#signal = input.signal;
    this.#running = this.#run(input);
    return this.#running;
  }

  async finish(): Promise<{ archiveSize: number }> {
    this.#ended ??= this.#end();
    await this.#ended;
    return { archiveSize: this.#place.directory.committed ? this.#archiveSize : 0 };
  }

  /** Goes into the archive, if there is one. */
  async handleLogFile(path: string): Promise<void> {
    const { directory } = this.#place;
    if (!directory.committed) return;
    const { O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW } = constants;
    const flags = O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW;
    await withFile(directory.path(member.log), flags, (file) =>
      writeFile(file, createReadStream(path, { end: maxLog - 1 })),
    );
  }

  async #run(input: VmBackupInput): Promise<void> {
    const { path } = this.#store.layout;
    const { directory, lock } = this.#place;
    try {
      await this.#write(input);
      await directory.commit(input.signal, () => {
        // Without the lock a sweep may have taken chunks of this archive for garbage.
        if (!lock.held) throw new BackupError('the lock of the store was lost: try again');
      });
    } catch (error) {
      this.#full = isFull(error);
      throw storeError(path, `cannot back up VM ${this.#guest.vmid}`, error);
    } finally {
      this.#bases.clear();
    }
    await lock.release();
  }

  /** Everything but the commit; archive.json comes last. */
  async #write(input: VmBackupInput): Promise<void> {
    const { directory } = this.#place;
    const files: Record<string, string> = {};
    let storedBytes = 0;
    for (const [file, content] of [
      [member.guestConfig, input.guestConfig],
      [member.firewallConfig, input.firewallConfig],
    ] as const) {
      if (content === undefined) continue;
      await writeFile(directory.path(file), content, { flag: 'wx' });
      files[file] = sha256(content);
      storedBytes += content.length;
    }
    const copied = await copyVolumes(input, this.#bases, this.#store.chunks, directory);
    this.#archiveSize = archiveSizeOf(copied);
    const record = encodeRecord({
      format: 1,
      archiveId: this.archiveId,
      vmid: this.#guest.vmid,
      vmtype: this.#guest.vmtype,
      startTime: this.#guest.startTime.toISOString(),
      tool: this.#tool,
      chunkSize,
      volumes: copied.volumes,
      files,
      storedBytes: storedBytes + copied.storedBytes,
    });
    input.signal.throwIfAborted();
    await writeFile(directory.path(member.record), record, { flag: 'wx' });
  }

  async #end(): Promise<void> {
    const store = this.#store;
    const { directory, lock } = this.#place;
    const cancelled = store.signal.aborted || this.#signal?.aborted === true;
    const writers = Promise.allSettled([this.#running, store.chunks.settled()]);
    try {
      if (!directory.committed) await wantSweep(store);
      await directory.discard(writers, cancelled ? cancelledMs : patienceMs);
    } catch (error) {
      throw storeError(store.layout.path, 'cannot clean up after the backup', error);
    } finally {
      await lock.release();
      this.#onEnd(cancelled);
    }
    // What the next guest of the job needs at once; otherwise there is time until the job's end.
    if (this.#full && !cancelled) await sweep(store);
  }
}

/**
 * Reserves the archive's name and keeps sweeps away. `tool` says in the archive what wrote it; `onEnd` is told
 * once whether the backup was cancelled.
 */
export async function beginVmBackup(
  store: Store,
  guest: Guest,
  tool: string,
  onEnd: (cancelled: boolean) => void,
): Promise<VmBackup> {
  await store.open();
  const lock = await store.share();
  try {
    const directory = await RunDirectory.reserve(store.layout, archiveNameOf(guest), store.sync);
    return new DirectoryVmBackup(store, guest, tool, { directory, lock }, onEnd);
  } catch (error) {
    await lock.release();
    throw storeError(store.layout.path, `cannot back up VM ${guest.vmid}`, error);
  }
}
