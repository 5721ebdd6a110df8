import { statfs } from 'node:fs/promises';
import * as z from 'zod';
import { messageOf } from '../../protocol/errors.ts';
import type {
  Archive,
  ArchiveInfo,
  ContainerBackup,
  Guest,
  Provider,
  Storage,
  VmBackup,
} from '../../sdk/provider.ts';
import { ArchiveCache } from './archive-cache.ts';
import { openArchive } from './archives.ts';
import { DirectoryContainerBackup } from './container-backup.ts';
import { type Sync, storeError, syncFileSystem } from './files.ts';
import { collectLeftovers, deleteHidden } from './leftovers.ts';
import { collectStaleMounts } from './squashfs-mount.ts';
import { Store } from './store.ts';
import { storeId } from './store-file.ts';
import { type Reservation, reserve } from './stored-backup.ts';
import { sweepIfWanted } from './sweep.ts';
import { DirectoryVmBackup } from './vm-backup.ts';

/** The host has checked the options; this gives them their types. */
const directoryOptions = z.object({
  path: z.string().startsWith('/'),
  'bridge-dir-compression': z.enum(['brotli', 'none']).default('brotli'),
  'bridge-dir-mechanism': z.enum(['nbd', 'file-handle']).default('nbd'),
  'bridge-dir-shared-with-cluster': z.string().optional(),
});

/** With less of the store free, space is freed between the backups of a job and not only after them. */
const roomyShare = 0.1;

/** Archives in a directory: a local disk, an NFS or CIFS mount. */
export class DirectoryProvider implements Provider {
  readonly #store: Store;
  readonly #archives: ArchiveCache;
  readonly #tool: string;
  readonly #mechanism: VmBackup['mechanism'];
  /** Backups that may have to be cleaned up when the host ends. */
  readonly #backups = new Set<VmBackup | ContainerBackup>();
  /** Then PVE kills soon, and the next job has to do what is left. */
  #cancelled = false;
  #inJob = false;

  constructor(storage: Storage, tool: string, sync: Sync = syncFileSystem) {
    const { cluster, log, runDir, cacheDir, signal } = storage;
    const options = directoryOptions.parse(storage.options);
    this.#tool = tool;
    this.#mechanism = options['bridge-dir-mechanism'];
    this.#store = new Store({
      path: options.path,
      compression: options['bridge-dir-compression'],
      user: { cluster, sharedWith: options['bridge-dir-shared-with-cluster'] },
      sync,
      log,
      runDir,
      cacheDir,
      signal,
    });
    this.#archives = new ArchiveCache(this.#store, cacheDir);
  }

  async status(): Promise<{ total: number; used: number; available: number }> {
    await this.#store.check();
    const { bsize, blocks, bfree, bavail } = await statfs(this.#store.layout.path);
    return { total: blocks * bsize, used: (blocks - bfree) * bsize, available: bavail * bsize };
  }

  async identity(): Promise<string> {
    await this.#store.check();
    return storeId(this.#store.layout);
  }

  async listArchives(filter: { vmid?: number }): Promise<ArchiveInfo[]> {
    await this.#store.check();
    return this.#archives.list(filter.vmid);
  }

  async archive(name: string): Promise<Archive> {
    await this.#store.check();
    return openArchive(this.#store, name);
  }

  setUp(): Promise<void> {
    return this.#store.open();
  }

  /** Within a job the sweep is left to its end, unless space is short: it reads every index of the store. */
  async reclaim(): Promise<void> {
    try {
      const isStore = await this.#store.check();
      if (!isStore) return await deleteHidden(this.#store);
      const isLater = this.#inJob && (await this.#isRoomy());
      await (isLater ? deleteHidden : collectLeftovers)(this.#store);
      if (!isLater) await sweepIfWanted(this.#store);
    } catch (error) {
      throw storeError(this.#store.layout.path, 'cannot free space', error);
    }
  }

  async startJob(): Promise<void> {
    this.#cancelled = false;
    await collectStaleMounts(this.#store.runDir, this.#store.log);
    await this.#store.open();
    this.#inJob = true;
    try {
      await collectLeftovers(this.#store);
    } catch (error) {
      throw storeError(this.#store.layout.path, 'cannot clean up after dead backups', error);
    }
    await sweepIfWanted(this.#store).catch((error: unknown) => {
      this.#store.log.warn(`no space was freed: ${messageOf(error)}`);
    });
  }

  async endJob(): Promise<void> {
    this.#inJob = false;
    if (!this.#cancelled) await this.reclaim();
  }

  backupVm(guest: Guest): Promise<VmBackup> {
    const mechanism = this.#mechanism;
    return this.#begin(guest, (reservation) => new DirectoryVmBackup(reservation, mechanism));
  }

  backupContainer(guest: Guest): Promise<ContainerBackup> {
    return this.#begin(guest, (reservation) => new DirectoryContainerBackup(reservation));
  }

  async close(): Promise<void> {
    await Promise.all([...this.#backups].map((backup) => backup.finish({ success: false })));
    this.#backups.clear();
  }

  async #isRoomy(): Promise<boolean> {
    const { total, available } = await this.status();
    return available > total * roomyShare;
  }

  async #begin<Backup extends VmBackup | ContainerBackup>(
    guest: Guest,
    make: (reservation: Reservation) => Backup,
  ): Promise<Backup> {
    const onEnd = (cancelled: boolean) => {
      this.#backups.delete(backup);
      this.#cancelled ||= cancelled;
    };
    const backup = make(await reserve({ store: this.#store, guest, tool: this.#tool, onEnd }));
    this.#backups.add(backup);
    return backup;
  }
}
