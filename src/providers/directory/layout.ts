import { join } from 'node:path';
import type { VmType } from '../../protocol/model.ts';

/** Bytes of disk in a chunk, which is the granularity of QEMU's bitmap [E2]. */
export const chunkSize = 4 * 1024 * 1024;

/** What an archive name says: our own end in a time, those of Proxmox's directory example in seconds since 1970. */
export interface ParsedName {
  readonly vmid: number;
  readonly vmtype: VmType;
  readonly startTime: Date;
  readonly origin: 'bridge' | 'example';
}

const own = /^([1-9]\d{0,8})\/(qemu|lxc)-(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)$/;
const example = /^([1-9]\d{0,8})\/(qemu|lxc)-(\d{1,11})$/;

/** Undefined for what is no archive name of this provider. */
export function parseArchiveName(name: string): ParsedName | undefined {
  const match = own.exec(name) ?? example.exec(name);
  const [, vmid, vmtype, time] = match ?? [];
  if (time === undefined) return undefined;
  const origin = time.endsWith('Z') ? 'bridge' : 'example';
  const startTime = new Date(origin === 'bridge' ? time : Number(time) * 1000);
  if (Number.isNaN(startTime.getTime())) return undefined;
  return { vmid: Number(vmid), vmtype: vmtype === 'lxc' ? 'lxc' : 'qemu', startTime, origin };
}

/** `VMID/VMTYPE-STARTTIME`, in whole seconds. */
export function archiveNameOf(guest: { vmid: number; vmtype: VmType; startTime: Date }): string {
  const time = guest.startTime.toISOString().replace(/\.\d+Z$/, 'Z');
  return `${guest.vmid}/${guest.vmtype}-${time}`;
}

/** A directory whose name begins like an archive's and ends in one of these is none (yet, or any more). */
export const suffix = { starting: '.starting', partial: '.partial', removed: '.removed' } as const;

/** Where things lie below the storage's path. */
export function layoutOf(path: string) {
  const bridge = join(path, '.pve-backup-bridge');
  const chunks = join(path, 'chunks');
  return {
    path,
    bridge,
    storeFile: join(bridge, 'store.json'),
    lock: join(bridge, 'lock'),
    /** Exists while chunks may lie about that no index names. */
    sweepWanted: join(bridge, 'sweep-wanted'),
    /** The same while a sweep is under way, or was when it died. */
    sweepBegun: join(bridge, 'sweep-begun'),
    /** Locked by who changes what protects an archive, and by who removes one. */
    protectionLock: join(bridge, 'protection-lock'),
    /** Chunks whose content was not what their name says. */
    damagedChunks: join(bridge, 'damaged'),
    chunks,
    chunkDirectory: (hex: string) => join(chunks, hex.slice(0, 2)),
    /** Lower-case hexadecimal SHA-256 of the content; `.br` if compressed. */
    chunk: (hex: string) => join(chunks, hex.slice(0, 2), hex),
    guest: (vmid: number) => join(path, String(vmid)),
    archive: (name: string) => join(path, name),
  };
}

export type Layout = ReturnType<typeof layoutOf>;

/** The files of an archive. */
export const member = {
  guestConfig: 'guest.conf',
  firewallConfig: 'firewall.conf',
  /** The tree of a container, in one of these forms. */
  tar: 'archive.tar',
  tarZstd: 'archive.tar.zst',
  /** Only the example's. */
  squashfs: 'archive.sqfs',
  record: 'archive.json',
  notes: 'notes',
  protection: 'protected',
  log: 'backup.log',
  /** There if a chunk of the archive is known to be damaged: one digest a line. */
  damaged: 'damaged',
  /** The result of the last verification. */
  verification: 'verification.json',
  /** Which boot of which node runs the backup. */
  run: 'run.json',
  index: (device: string) => `${device}.index`,
} as const;
