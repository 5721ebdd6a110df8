import { BackupError, messageOf } from '../protocol/errors.ts';
import type { Params } from '../protocol/methods.ts';
import type { DeviceName, VmBackup, VolumeSizes, VolumeSource } from '../sdk/provider.ts';
import { type FileVolume, openFileVolume } from '../toolbox/file-volume.ts';
import { openLedger, recordBitmaps } from '../toolbox/ledger.ts';
import { type NbdVolume, openNbdVolume } from '../toolbox/nbd-volume.ts';
import { ReleaseStack } from '../toolbox/release.ts';
import { decodeConfigs } from './configs.ts';
import type { Context } from './session.ts';

/** What the bitmaps of a VM are asked for [B6]. */
export async function planBitmaps(
  { root, storeid }: Context,
  backup: VmBackup,
  { vmid, volumes }: Params<'backup_vm_query_incremental'>,
) {
  const sizes = Object.entries(volumes).map(([device, v]) => [device, v.size] as const);
  // QEMU aborts when it is asked for access to no volume at all, and the guest dies with it [B6].
  if (sizes.length === 0) {
    throw new BackupError(`VM ${vmid} has no disk that is included in backups: include one`);
  }
  const ledger = await openLedger({ root, storeid, vmid });
  return Object.fromEntries(await backup.planBitmaps(new Map(sizes), ledger));
}

/** Runs the backup of a VM. Returns the sizes of the volumes whose bitmap it consumes. */
export async function runVmBackup(
  context: Context,
  backup: VmBackup,
  params: Params<'backup_vm'>,
  signal: AbortSignal,
): Promise<VolumeSizes> {
  const stack = new ReleaseStack();
  try {
    const volumes = await openVolumes(context, params.volumes, stack, signal);
    const limit = params['bandwidth-limit'];
    await backup.run({
      ...decodeConfigs(params),
      volumes,
      ...(limit && { bandwidthLimit: limit }),
      log: context.log,
      signal,
    });
    return withBitmap(volumes);
  } finally {
    await stack.release();
  }
}

/** After the commit: the archive that the bitmaps of these volumes belong to from now on [B15]. */
export async function noteBitmaps(
  { root, storeid, log }: Context,
  vmid: number,
  { archiveId }: VmBackup,
  volumes: VolumeSizes,
): Promise<void> {
  await recordBitmaps({ root, storeid, vmid, archiveId, volumes }).catch((error: unknown) =>
    log.warn(`the next backup will read everything: ${messageOf(error)}`),
  );
}

async function openVolumes(
  context: Context,
  volumes: Params<'backup_vm'>['volumes'],
  stack: ReleaseStack,
  signal: AbortSignal,
): Promise<Map<DeviceName, VolumeSource>> {
  const sources = new Map<DeviceName, VolumeSource>();
  for (const [device, volume] of Object.entries(volumes)) {
    const source = await openVolume(context, device, volume, signal);
    stack.add(`volume ${device}`, () => source.close());
    sources.set(device, source);
  }
  return sources;
}

/** By the mechanism that its keys tell [B7]. */
function openVolume(
  { owner, askShim }: Context,
  device: DeviceName,
  volume: Params<'backup_vm'>['volumes'][string],
  signal: AbortSignal,
): Promise<NbdVolume | FileVolume> {
  const base = { device, size: volume.size, bitmapMode: volume['bitmap-mode'], signal };
  if ('nbd-path' in volume) {
    const bitmapName = volume['bitmap-name'] ?? null;
    return openNbdVolume({ ...base, socketPath: volume['nbd-path'], bitmapName });
  }
  return openFileVolume({
    ...base,
    owner,
    path:
      'block-device' in volume
        ? volume['block-device']
        : `/proc/${owner.pid}/fd/${volume['file-descriptor']}`,
    nextRegions: (max) => askShim('volume_next_dirty_regions', { device, max }, signal),
    deallocate: async (offset, length) => {
      await askShim('volume_deallocate', { device, offset, length }, signal);
    },
  });
}

function withBitmap(volumes: ReadonlyMap<DeviceName, VolumeSource>): VolumeSizes {
  const sizes = new Map<DeviceName, number>();
  for (const [device, { bitmapMode, size }] of volumes) {
    if (bitmapMode !== 'none') sizes.set(device, size);
  }
  return sizes;
}
