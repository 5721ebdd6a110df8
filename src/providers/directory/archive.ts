import { rename, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { BackupError, isBackupError } from '../../protocol/errors.ts';
import type {
  Archive,
  ArchiveInfo,
  ContainerMechanism,
  ContainerRestore,
  VmRestore,
} from '../../sdk/provider.ts';
import { maxNotes, readArchive } from './archive-info.ts';
import { hasMember, readConfig } from './archive-members.ts';
import type { ArchiveRecord } from './archive-record.ts';
import { proveTar } from './container-file.ts';
import { ifMissing, storeError, syncDirectory, writeAtomically } from './files.ts';
import { member, type ParsedName, suffix } from './layout.ts';
import { collectStaleMounts } from './squashfs-mount.ts';
import { restoreWaitMs, type Store } from './store.ts';
import { wantSweep } from './sweep.ts';
import { touchGuest } from './touch-guest.ts';
import { verifyArchive } from './verify-archive.ts';
import { openRestore } from './vm-restore.ts';

/** What every archive of the store can do; how its disks lie there is the subclass's. */
export abstract class StoredArchive implements Archive {
  readonly info: ArchiveInfo;
  readonly containerMechanism?: ContainerMechanism;
  protected readonly store: Store;

  /** `mechanism` of a container's archive. */
  constructor(store: Store, info: ArchiveInfo, mechanism: ContainerMechanism) {
    this.store = store;
    this.info = info;
    if (info.vmtype === 'lxc') this.containerMechanism = mechanism;
  }

  /** A VM's disks. */
  protected abstract openVm(): Promise<VmRestore>;

  /** A container's tree. */
  protected abstract openContainer(signal: AbortSignal): Promise<ContainerRestore>;

  /** Rejects if removing this archive would harm another. */
  protected abstract assertRemovable(): Promise<void>;

  async restoreVm(): Promise<VmRestore> {
    const { name, vmtype } = this.info;
    if (vmtype !== 'qemu') throw new BackupError(`archive ${name} is not of a VM`);
    return this.openVm();
  }

  async restoreContainer(signal: AbortSignal): Promise<ContainerRestore> {
    const { store } = this;
    const { name, vmtype } = this.info;
    if (vmtype !== 'lxc') throw new BackupError(`archive ${name} is not of a container`);
    await collectStaleMounts(store.runDir, store.log);
    return this.openContainer(signal);
  }

  async guestConfig(): Promise<Uint8Array> {
    const config = await readConfig(this.store.layout, this.info.name, member.guestConfig);
    if (config !== undefined) return config;
    throw new BackupError(`archive ${this.info.name} has no guest config`);
  }

  async firewallConfig(): Promise<Uint8Array | undefined> {
    return readConfig(this.store.layout, this.info.name, member.firewallConfig);
  }

  async setNotes(notes: string): Promise<void> {
    if (Buffer.byteLength(notes) > maxNotes) {
      throw new BackupError(`notes have at most ${maxNotes} bytes`);
    }
    await this.#change(member.notes, notes === '' ? undefined : notes);
  }

  async setProtected(protect: boolean): Promise<void> {
    const content = protect ? '' : undefined;
    await this.store.guardProtection(() => this.#change(member.protection, content));
  }

  /** Whole before, gone after, whenever a crash comes; the space follows with the next `reclaim`. */
  async remove(): Promise<void> {
    const { store, info } = this;
    await this.assertRemovable();
    try {
      await store.guardProtection(() => this.#hide());
      if (info.vmtype === 'qemu') await wantSweep(store);
    } catch (error) {
      throw storeError(store.layout.path, `cannot remove archive ${info.name}`, error);
    }
  }

  async #hide(): Promise<void> {
    const { layout } = this.store;
    const { name } = this.info;
    if (await hasMember(layout, name, member.protection)) {
      throw new BackupError(`archive ${name} is protected`);
    }
    const path = layout.archive(name);
    // Another process may have been quicker.
    await rename(path, `${path}${suffix.removed}`).catch(ifMissing);
    await syncDirectory(dirname(path));
  }

  async #change(file: string, content: string | undefined): Promise<void> {
    const { layout } = this.store;
    const path = join(layout.archive(this.info.name), file);
    try {
      if (content !== undefined) await writeAtomically(path, content);
      else {
        await unlink(path).catch(ifMissing);
        await syncDirectory(dirname(path));
      }
      await touchGuest(layout, this.info.name);
    } catch (error) {
      throw storeError(layout.path, `cannot change archive ${this.info.name}`, error);
    }
  }
}

/** An archive of ours: disks are indexes of chunks, containers are tars. */
class BridgeArchive extends StoredArchive {
  readonly #found: ArchiveRecord | BackupError;

  /** `found` instead of a record: why there is none. */
  constructor(store: Store, info: ArchiveInfo, found: ArchiveRecord | BackupError) {
    super(store, info, 'tar');
    this.#found = found;
  }

  get #record(): ArchiveRecord {
    if (isBackupError(this.#found)) throw this.#found;
    return this.#found;
  }

  protected openVm(): Promise<VmRestore> {
    const { store, info } = this;
    return this.#locked((release) =>
      openRestore(store.layout, info.name, this.#record, store.chunks, release),
    );
  }

  protected openContainer(): Promise<ContainerRestore> {
    const { store, info } = this;
    return this.#locked(async (close) => {
      const { container, files } = this.#record;
      if (container === undefined) throw new BackupError(`archive ${info.name} has no tar`);
      const path = await proveTar(store.layout, info.name, container);
      const sha256 = files[container.tar];
      return { path, ...(sha256 !== undefined && { sha256 }), close };
    });
  }

  verify(options: Parameters<NonNullable<Archive['verify']>>[0]): Promise<string[]> {
    return verifyArchive(this.store, this.info.name, options);
  }

  /** Opens a restore that shares the lock of the store until it calls `release`. */
  async #locked<Restore>(
    open: (release: () => Promise<void>) => Promise<Restore>,
  ): Promise<Restore> {
    const { store, info } = this;
    const lock = await store.share(restoreWaitMs);
    try {
      return await open(() => lock.release());
    } catch (error) {
      await lock.release();
      throw storeError(store.layout.path, `cannot restore archive ${info.name}`, error);
    }
  }

  protected async assertRemovable(): Promise<void> {}
}

export async function openBridgeArchive(
  store: Store,
  name: string,
  parsed: ParsedName,
): Promise<Archive> {
  const { record, info } = readArchive(store.layout, name, parsed);
  return new BridgeArchive(store, info, record);
}
