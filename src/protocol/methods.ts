import * as z from 'zod';
import * as m from './model.ts';

const empty = z.object({});
const archive = z.object({ volname: m.volname });
const volumeOfArchive = archive.extend({ 'device-name': m.deviceName });
const guest = z.object({ vmid: m.vmid, vmtype: m.vmtype });
const containerSource = z.object({
  vmid: m.vmid,
  directory: m.absolutePath,
  sources: z.array(m.sourcePath).min(1).max(300),
  'backup-user-id': z.int().nonnegative(),
});

const define = <P extends z.ZodType, R extends z.ZodType>(params: P, result: R) => ({
  params,
  result,
});

/**
 * Every request from the shim to the host, in the order of a backup, then of a restore. Names and keys are
 * PVE's own (PVE::BackupProvider::Plugin::Base, PVE::Storage::Plugin); the bridge's own methods come first.
 */
export const methods = {
  /** The first request: the storage's section of storage.cfg, and the process that the host belongs to. */
  open: define(
    z.object({
      storeid: m.storeid,
      scfg: z.record(z.string(), z.unknown()),
      owner: m.process,
    }),
    empty,
  ),
  /** Answered as long as the host's event loop turns. */
  ping: define(empty, empty),
  /** Aborts every other request that is under way; each then answers with its error. */
  cancel: define(empty, empty),
  /** Aborts, releases everything and exits after the answer. */
  shutdown: define(empty, empty),

  check_connection: define(empty, empty),
  status: define(empty, z.object({ total: m.size, avail: m.size, used: m.size })),
  list_volumes: define(z.object({ vmid: m.vmid.optional() }), z.array(m.volumeInfo)),
  volume_size_info: define(archive, z.object({ size: m.size, used: m.size })),
  get_volume_attribute: define(
    archive.extend({ attribute: z.enum(['notes', 'protected']) }),
    z.object({ value: z.union([z.string(), z.boolean()]) }),
  ),
  update_volume_attribute: define(
    archive.and(
      z.union([
        z.object({ attribute: z.literal('notes'), value: z.string().max(1 << 20) }),
        z.object({ attribute: z.literal('protected'), value: z.boolean() }),
      ]),
    ),
    empty,
  ),
  /** The archive is gone when this returns; its space follows with `reclaim_space` [D7]. */
  free_image: define(archive, empty),
  /** Frees the space of removed archives; may take long. */
  reclaim_space: define(empty, empty),
  /** What tells the store from every other one, wherever it is configured; since version 14 of the storage API. */
  get_identity: define(empty, z.object({ identity: z.string().regex(/^[!-~]{1,256}$/) })),
  /** `pvesm add`: the first use of a store, or the check of one that is there [D3]. */
  on_add_hook: define(empty, empty),
  /** Reads one archive, or all; `problems` has a line for each fault that was found. */
  verify: define(
    z.object({ volname: m.volname.optional() }),
    z.array(z.object({ volname: m.volname, problems: z.array(z.string()) })),
  ),

  job_init: define(z.object({ 'start-time': m.unixTime }), empty),
  backup_init: define(
    guest.extend({ 'start-time': m.unixTime }),
    z.object({ 'archive-name': m.archiveName }),
  ),
  backup_get_mechanism: define(guest, z.object({ mechanism: m.mechanism })),
  backup_vm_query_incremental: define(
    z.object({ vmid: m.vmid, volumes: m.volumeSizes }),
    z.record(m.deviceName, m.bitmapRequest),
  ),
  backup_vm: define(
    z.object({
      vmid: m.vmid,
      'guest-config': m.base64,
      'firewall-config': m.base64.optional(),
      volumes: z.record(m.deviceName, m.backupVolume),
      'bandwidth-limit': z.number().nonnegative().optional(),
    }),
    empty,
  ),
  /** Still as root and in vzdump's own process [B8]. */
  backup_container_prepare: define(containerSource, empty),
  /** Over the second connection where `caller` is a forked child in namespaces of its own [A8]. */
  backup_container: define(
    containerSource.extend({
      caller: m.process,
      'guest-config': m.base64,
      'firewall-config': m.base64.optional(),
      'exclude-patterns': z.array(z.string().min(1).max(4096)).max(4096),
      'bandwidth-limit': z.number().nonnegative().optional(),
    }),
    empty,
  ),
  /** May come without `backup_init`, with no vmtype, and again after a success [B12]. */
  backup_cleanup: define(
    z.object({
      vmid: m.vmid,
      vmtype: m.vmtype.optional(),
      success: z.boolean(),
      info: z.object({ error: z.string().optional() }),
    }),
    z.object({ stats: z.object({ 'archive-size': m.size }).optional() }),
  ),
  backup_handle_log_file: define(z.object({ vmid: m.vmid, path: m.absolutePath }), empty),
  job_cleanup: define(empty, empty),

  archive_get_guest_config: define(archive, z.object({ config: m.base64 })),
  archive_get_firewall_config: define(archive, z.object({ config: m.base64.nullable() })),
  restore_get_mechanism: define(
    archive,
    z.object({ mechanism: m.restoreMechanism, vmtype: m.vmtype }),
  ),
  restore_vm_init: define(archive, m.volumeSizes),
  restore_vm_volume_init: define(volumeOfArchive, z.object({ 'qemu-img-path': m.absolutePath })),
  restore_vm_volume_cleanup: define(volumeOfArchive, empty),
  restore_vm_cleanup: define(archive, empty),
  /** By the mechanism that `restore_get_mechanism` named [C7]. */
  restore_container_init: define(
    archive,
    z.union([
      z.strictObject({ 'tar-path': m.absolutePath }),
      z.strictObject({ 'archive-directory': m.absolutePath }),
    ]),
  ),
  restore_container_cleanup: define(archive, empty),
} as const;

/** Requests from the host to the shim during `backup_vm`, mechanism file-handle: code and fallocate(2) are Perl's [B7]. */
export const requests = {
  /** The next dirty regions, in order; fewer than `max` if there are no more. */
  volume_next_dirty_regions: define(
    z.object({ device: m.deviceName, max: z.int().positive() }),
    z.array(z.tuple([m.size, m.size])),
  ),
  volume_deallocate: define(
    z.object({ device: m.deviceName, offset: m.size, length: m.size }),
    empty,
  ),
} as const;

/** Notifications from the host to the shim. */
export const notifications = {
  /** A line for PVE's task log [B20]. */
  log: z.object({ level: m.logLevel, message: z.string().min(1) }),
} as const;

type Methods = typeof methods;
export type Method = keyof Methods;
export type Params<M extends Method> = z.output<Methods[M]['params']>;
type Result<M extends Method> = z.output<Methods[M]['result']>;

/** What a session implements: one function per method, so that a missing one does not compile. */
export type Handlers = {
  [M in Method]: (params: Params<M>, signal: AbortSignal) => Promise<Result<M>>;
};
