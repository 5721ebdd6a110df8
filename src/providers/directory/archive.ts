import { rename, rm, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { BackupError } from '../../protocol/errors.ts';
import type {
  Archive,
  ArchiveInfo,
  ContainerMechanism,
  ContainerRestore,
  VmRestore,
} from '../../sdk/provider.ts';
import { hasMember, readConfig } from './archive-members.ts';
import { type ArchiveRecord, archiveSizeOf, readRecord } from './archive-record.ts';
import { proveTar } from './container-file.ts';
import { ifMissing, readBounded, storeError, syncDirectory, writeAtomically } from './files.ts';
import { type Layout, member, type ParsedName, suffix } from './layout.ts';
import { collectStaleMounts } from './squashfs-mount.ts';
import { restoreWaitMs, type Store } from './store.ts';
import { sweep, wantSweep } from './sweep.ts';
import { openRestore } from './vm-restore.ts';

const maxNotes = 1024 * 1024;

/** What PVE lists of an archive, whichever format it has. */
export async function describeArchive(
  layout: Layout,
  name: string,
  parsed: ParsedName,
  size: number,
): Promise<ArchiveInfo> {
  const { vmid, vmtype, startTime } = parsed;
  const path = join(layout.archive(name), member.notes);
  const notes = (await readBounded(path, maxNotes).catch(ifMissing))?.toString('utf8');
  return {
    name,
    vmid,
    vmtype,
    startTime,
    size: Math.max(size, 1),
    protected: await hasMember(layout, name, member.protection),
    ...(notes !== undefined && { notes }),
  };
}

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
    await this.#change(member.protection, protect ? '' : undefined);
  }

  /** Gone at once, whatever happens next; the space follows when the store is not in use. */
  async remove(): Promise<void> {
    const { store, info } = this;
    const path = store.layout.archive(info.name);
    if (await hasMember(store.layout, info.name, member.protection)) {
      throw new BackupError(`archive ${info.name} is protected`);
    }
    await this.assertRemovable();
    try {
      await rename(path, `${path}${suffix.removed}`);
      await syncDirectory(dirname(path));
      const hasChunks = (await store.check()) && info.vmtype === 'qemu';
      if (hasChunks) await wantSweep(store);
      await rm(`${path}${suffix.removed}`, { recursive: true, force: true });
      if (hasChunks) await sweep(store);
    } catch (error) {
      throw storeError(store.layout.path, `cannot remove archive ${info.name}`, error);
    }
  }

  async #change(file: string, content: string | undefined): Promise<void> {
    const { layout } = this.store;
    const path = join(layout.archive(this.info.name), file);
    try {
      if (content !== undefined) return await writeAtomically(path, content);
      await unlink(path).catch(ifMissing);
      await syncDirectory(dirname(path));
    } catch (error) {
      throw storeError(layout.path, `cannot change archive ${this.info.name}`, error);
    }
  }
}

/** An archive of ours: disks are indexes of chunks, containers are tars. */
class BridgeArchive extends StoredArchive {
  readonly #record: ArchiveRecord;

  constructor(store: Store, info: ArchiveInfo, record: ArchiveRecord) {
    super(store, info, 'tar');
    this.#record = record;
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
      const { container } = this.#record;
      if (container === undefined) throw new BackupError(`archive ${info.name} has no tar`);
      return { path: await proveTar(store.layout, info.name, container), close };
    });
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
  const record = await readRecord(store.layout, name);
  const info = await describeArchive(store.layout, name, parsed, archiveSizeOf(record));
  return new BridgeArchive(store, info, record);
}
