import type { Readable, Writable } from 'node:stream';
import type { BitmapRequest, BitmapResult, VmType } from '../protocol/model.ts';

/** PVE's name of a disk and of its NBD export: `drive-scsi0`. */
export type DeviceName = string;
/** A relative path of PVE's safe characters that holds the vmid; the volid is STOREID:backup/NAME. */
export type ArchiveName = string;
/** Bytes, per device. */
export type VolumeSizes = ReadonlyMap<DeviceName, number>;

/** Bytes `offset` to `offset + length`. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
}

/** An extent to back up; `zero` ones read as zeroes and need not be read. */
export interface DataExtent extends Extent {
  readonly zero: boolean;
}

/** Two audiences: info, warn and error also reach the task log, one line each; debug stays in the log file. */
export interface Logger {
  info(message: string): void;
  warn(message: string): void;
  error(message: string): void;
  debug(message: string, details?: Record<string, unknown>): void;
}

/** One storage.cfg entry, as `open` gets it. */
export interface Storage<Options = Record<string, unknown>> {
  readonly id: string;
  readonly options: Options;
  /** The values of options declared `secret`; never log them. */
  readonly secrets: Readonly<Record<string, string>>;
  readonly log: Logger;
  /** Identity of this cluster, or of the node if it is in none; the host reads it. */
  readonly cluster: string;
  /** A directory of this storage on a tmpfs, 0700, gone after a reboot. */
  readonly runDir: string;
  /** A directory of this storage on disk, 0700, whose loss costs only time. */
  readonly cacheDir: string;
  /** Aborts when the host ends. */
  readonly signal: AbortSignal;
}

/** One entry of `listArchives`. */
export interface ArchiveInfo {
  readonly name: ArchiveName;
  readonly vmid: number;
  readonly vmtype: VmType;
  readonly startTime: Date;
  /** Bytes, never 0 [D6]. */
  readonly size: number;
  readonly protected: boolean;
  readonly notes?: string;
  /** The last verification of this archive. */
  readonly verification?: Verification;
  /** True if `size` is a guess. */
  readonly approximateSize?: boolean;
  /** The fingerprint of the key, or `encrypted`. */
  readonly encrypted?: string;
}

export interface Verification {
  readonly state: 'ok' | 'failed';
  /** PVE's task id, or what stands for it where no PVE task ran. */
  readonly upid: string;
}

export interface Guest {
  readonly vmid: number;
  readonly vmtype: VmType;
  readonly startTime: Date;
}

/**
 * One storage. The host calls `startJob`, then per guest `backupVm` or `backupContainer` and the methods of its result, then
 * `endJob`; everything else may come at any time and in any process. Methods reject with `BackupError` for
 * what an administrator can mend; anything else is reported as a fault of the provider.
 */
export interface Provider {
  /** Bytes. Called every ten seconds by every node: answer from memory where the store is remote. */
  status(): Promise<{ total: number; used: number; available: number }>;
  listArchives(filter: { vmid?: number }): Promise<ArchiveInfo[]>;
  /** Rejects if there is none of that name. */
  archive(name: ArchiveName): Promise<Archive>;
  /** `pvesm add`: makes the store ready, or checks the one that is there [D3]. */
  setUp?(): Promise<void>;
  /** What tells this store from every other one, wherever it is configured: a UUID of its own. ASCII. */
  identity?(): Promise<string>;
  /** Frees the space of removed archives. May take long, and may leave the work to a later call. */
  reclaim?(): Promise<void>;
  startJob?(job: { startTime: Date }): Promise<void>;
  endJob?(): Promise<void>;
  /** Reserves the archive name. Absent: the provider does not back up VMs. */
  backupVm?(guest: Guest): Promise<VmBackup>;
  /** Reserves the archive name. Absent: the provider does not back up containers. */
  backupContainer?(guest: Guest): Promise<ContainerBackup>;
  /** Releases what `open` took; called once. */
  close?(): Promise<void>;
}

/** What the backups of VMs and of containers have in common: their end. */
interface GuestBackup {
  readonly archiveName: ArchiveName;
  /**
   * Any number of times, also without `run`. After a commit it never undoes it, whatever the outcome [B12];
   * without one it leaves nothing behind. `archiveSize` in bytes.
   */
  finish(outcome: { success: boolean; error?: string }): Promise<{ archiveSize: number }>;
  /** The task log, after `finish`, on failure too. */
  handleLogFile?(path: string): Promise<void>;
}

/** The backup of one VM: `planBitmaps`, `run`, `finish`, in this order. */
export interface VmBackup extends GuestBackup {
  /** A UUID of this archive, by which the bitmap ledger knows it. */
  readonly archiveId: string;
  readonly mechanism: 'nbd' | 'file-handle' | 'block-device';
  /** `use` only for devices whose newest archive `ledger.holds`; devices left out get no bitmap. */
  planBitmaps(volumes: VolumeSizes, ledger: BitmapLedger): Promise<Map<DeviceName, BitmapRequest>>;
  /** Resolves only when the archive is durably committed: QEMU's bitmaps are consumed then [B15]. */
  run(input: VmBackupInput): Promise<void>;
}

/** The backup of one container: `run`, `finish`. */
export interface ContainerBackup extends GuestBackup {
  /** Resolves only when the archive is durably committed. */
  run(input: ContainerBackupInput): Promise<void>;
}

/** Which archive consumed QEMU's dirty bitmaps last, in the QEMU process that runs now. */
export interface BitmapLedger {
  /** True if the bitmap of `device` holds just what changed since the archive `archiveId`. */
  holds(device: DeviceName, size: number, archiveId: string): boolean;
}

export interface VmBackupInput {
  /** Byte-exact [B16]. */
  readonly guestConfig: Uint8Array;
  readonly firewallConfig?: Uint8Array;
  readonly volumes: ReadonlyMap<DeviceName, VolumeSource>;
  /** Bytes per second for all volumes together; absent: no limit. */
  readonly bandwidthLimit?: number;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** A volume at the instant of the backup, whatever the mechanism behind it. */
export interface VolumeSource {
  readonly device: DeviceName;
  readonly size: number;
  readonly bitmapMode: BitmapResult;
  /**
   * What has to be backed up, ascending and disjoint: everything without a bitmap, else the dirty extents.
   * Areas outside them are unreadable [E3]. Restartable; discarding does not change it [E6].
   */
  extents(): AsyncIterable<DataExtent>;
  /**
   * Within one extent; `length` up to 32 MiB [E1]. The buffer belongs to the caller. It is `into`, which has
   * that length, where the source can put the data there; after an abort that may still happen.
   */
  read(offset: number, length: number, signal?: AbortSignal, into?: Buffer): Promise<Buffer>;
  /** Frees fleecing space; the range is never read again. Unaligned edges are kept [E6]. */
  discard(offset: number, length: number): Promise<void>;
}

export interface ContainerBackupInput {
  readonly guestConfig: Uint8Array;
  readonly firewallConfig?: Uint8Array;
  readonly tree: ContainerTree;
  /** Patterns for `tree.tar`, in vzdump's meaning. */
  readonly exclude: readonly string[];
  /** Bytes per second; absent: no limit. `tree.tar` keeps it by itself. */
  readonly bandwidthLimit?: number;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/**
 * A container's file system as its own root sees it. Programs that read it run inside the container's user
 * and mount namespaces [A8]; the provider, its secrets and its store stay outside.
 */
export interface ContainerTree {
  /** Where the root lies, as programs of `exec` see it. */
  readonly directory: string;
  /** Relative to `directory`: the root and each mount point that is included: `./`, `./mnt/data`. */
  readonly sources: readonly string[];
  /** The uid, outside, of the container's root; 0 if it is privileged. */
  readonly userId: number;
  /**
   * Starts GNU tar on the sources, with the flags of PVE's own backups: pax headers, numeric ids, sparse
   * files, ACLs, xattrs `user.*` and `security.capability`, one file system per source, never `lost+found`.
   * Progress and the names of files that changed meanwhile go to the task log.
   */
  tar(options?: TarOptions): Promise<TarStream>;
  /**
   * Starts a program inside the namespaces, as their root, with `directory` as working directory and next to
   * no environment. It sees the node's programs, not the container's.
   */
  exec(
    command: readonly [program: string, ...args: string[]],
    options?: ExecOptions,
  ): Promise<ContainerProgram>;
}

export interface TarOptions {
  /** As vzdump has them: with a leading `/` from the root, else at any depth; `*` and `?` match slashes. */
  readonly exclude?: readonly string[];
  /** A filter outside the namespaces, such as a compressor, through which the stream goes. */
  readonly through?: readonly [program: string, ...args: string[]];
  readonly signal?: AbortSignal;
}

export interface TarStream {
  /** Ends early if tar fails: only `done` says that it is whole. */
  readonly stream: Readable;
  /** Resolves when tar and the filter have ended well, rejects with the reason otherwise. */
  readonly done: Promise<TarTotals>;
}

export interface TarTotals {
  /** Members: files, directories, links and so on. */
  readonly entries: number;
  /** Bytes of the tar stream, before the filter. */
  readonly bytes: number;
}

export interface ExecOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
  /** Gets each line of stderr. */
  readonly onStderr?: (line: string) => void;
}

export interface ContainerProgram {
  readonly stdin: Writable;
  readonly stdout: Readable;
  /** Resolves when it ended with status 0, else rejects with its last words. */
  readonly exited: Promise<void>;
  /** TERM, then KILL; resolves when it is gone. */
  stop(): Promise<void>;
}

/** One archive of the store. */
export interface Archive {
  readonly info: ArchiveInfo;
  guestConfig(): Promise<Uint8Array>;
  /** Undefined if the guest had none [C8]. */
  firewallConfig(): Promise<Uint8Array | undefined>;
  /** The empty string removes them [D8]. */
  setNotes(notes: string): Promise<void>;
  setProtected(protect: boolean): Promise<void>;
  /** Refuses a protected archive. Gone at once; the space follows with `reclaim`. */
  remove(): Promise<void>;
  /** Reads all that belongs to the archive; a line for each fault. Keeps the result with the archive. */
  verify?(options: { log: Logger; signal: AbortSignal; upid: string }): Promise<string[]>;
  /** Proves that every volume can be read, since PVE destroys the old disks next [C4]. VMs only. */
  restoreVm?(): Promise<VmRestore>;
  /** What `restoreContainer` will give. Containers only. */
  readonly containerMechanism?: ContainerMechanism;
  /** The file system of a container. Containers only. */
  restoreContainer?(signal: AbortSignal): Promise<ContainerRestore>;
}

export type ContainerMechanism = 'tar' | 'directory';

/**
 * `tar`: a regular file named `.tar` or `.tar.zst`, `.gz`, `.bz2`, `.xz`, `.lzo`, of names that begin with
 * `./`; the host checks it before PVE gets it. `directory`: the root, with the ids that the container sees [C7].
 */
export interface ContainerRestore {
  readonly path: string;
  /** Of a tar, what the SHA-256 of the file has to be, in lower-case hexadecimal; absent: not known. */
  readonly sha256?: string;
  /** Releases what was taken; idempotent. */
  close(): Promise<void>;
}

export interface VmRestore {
  readonly volumes: VolumeSizes;
  openVolume(device: DeviceName): Promise<RawImage>;
  /** Releases what was taken; idempotent. */
  close(): Promise<void>;
}

/** A disk image to read; served to qemu-img as a file. */
export interface RawImage {
  readonly size: number;
  /** At most 32 MiB, within the size; several at a time. The buffer may be a cache's: nobody changes it. */
  read(offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array>;
  /** Covers the range without gaps. Absent: everything may be data. */
  extents?(offset: number, length: number): Promise<DataExtent[]>;
  close(): Promise<void>;
}
