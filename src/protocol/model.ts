import * as z from 'zod';

/** What PVE accepts as a storage id (pve-storage-id). */
export const storeid = z
  .string()
  .regex(/^[a-z][a-z0-9\-_.]*[a-z0-9]$/i)
  .max(100);
export const vmid = z.int().min(1).max(999_999_999);
export const vmtype = z.enum(['qemu', 'lxc']);
/** PVE's device name, also the name of the NBD export: `drive-scsi0`. */
export const deviceName = z.string().regex(/^[a-z][a-z0-9_-]{0,63}$/i);
/** Bytes; integers below 2^53 survive both JSON implementations. */
export const size = z.int().nonnegative();
/** Seconds since 1970. */
export const unixTime = z.int().nonnegative();
/** Bytes that need not be UTF-8: guest and firewall configs [B16]. */
export const base64 = z.base64();

export const absolutePath = z.string().startsWith('/').max(4096);
/** What of a container is backed up, relative to its root: `./`, `./mnt/data`, `.` [B8]. */
export const sourcePath = z
  .string()
  .regex(/^\.(?:\/|$)/)
  .max(4096);
/** A process for ever: its start time is field 22 of /proc/PID/stat. */
export const process = z.object({ pid: z.int().positive(), 'start-time': z.int().nonnegative() });

const component = '[a-zA-Z0-9+=_:-][a-zA-Z0-9.+=_:-]*';
const path = `${component}(?:/${component})*`;
/** The length comes first: a pattern must not be tried on megabytes. */
const short = z.string().max(512, { abort: true });

/** Relative, slash-separated, of PVE's safe characters [B3]; no component begins with a dot. */
export const archiveName = short.regex(new RegExp(`^${path}$`));
/** The part of a volid behind the storage id: `backup/` and the archive name. */
export const volname = short.regex(new RegExp(`^backup/${path}$`));

export const bitmapRequest = z.enum(['new', 'use']);
const bitmapResult = z.enum(['none', 'new', 'reuse']);
export const mechanism = z.enum(['nbd', 'file-handle', 'block-device', 'directory']);
export const restoreMechanism = z.enum(['qemu-img', 'directory', 'tar']);
export const logLevel = z.enum(['info', 'warn', 'err']);

export const volumeSizes = z.record(deviceName, z.object({ size }));

const volumeBase = { size, 'bitmap-mode': bitmapResult };

/** One volume of `backup_vm` [B7]: an NBD export, a descriptor that the shim holds open, or a block device (RFC v3). */
export const backupVolume = z.union([
  z.object({
    ...volumeBase,
    'nbd-path': absolutePath,
    'bitmap-name': z.string().nullish(),
  }),
  z.object({ ...volumeBase, 'file-descriptor': z.int().nonnegative() }),
  z.object({ ...volumeBase, 'block-device': absolutePath }),
]);

/** An entry of `list_volumes` [D5]; the shim makes the volid of it. */
export const volumeInfo = z.object({
  volname,
  vmid,
  subtype: vmtype,
  size,
  ctime: unixTime,
  protected: z.boolean(),
  notes: z.string().optional(),
  /** `size` is a guess. */
  'approximate-size': z.boolean().optional(),
  /** The fingerprint of the key, or `encrypted`. */
  encrypted: z.string().optional(),
  /** The last verification, as PVE shows it. */
  verification: z.object({ state: z.enum(['ok', 'failed']), upid: z.string() }).optional(),
});

export type VmType = z.infer<typeof vmtype>;
export type BitmapRequest = z.infer<typeof bitmapRequest>;
export type BitmapResult = z.infer<typeof bitmapResult>;
export type LogLevel = z.infer<typeof logLevel>;
export type VolumeInfo = z.infer<typeof volumeInfo>;
