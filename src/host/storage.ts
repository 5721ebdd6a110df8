import { BackupError } from '../protocol/errors.ts';
import type { Handlers } from '../protocol/methods.ts';
import type { VolumeInfo } from '../protocol/model.ts';
import type { ArchiveInfo } from '../sdk/provider.ts';
import { archiveOf, volnameOf } from './archive.ts';
import type { Context } from './session.ts';
import { verify } from './verify.ts';

type StorageMethod =
  | 'check_connection'
  | 'status'
  | 'list_volumes'
  | 'volume_size_info'
  | 'get_volume_attribute'
  | 'update_volume_attribute'
  | 'free_image'
  | 'reclaim_space'
  | 'get_identity'
  | 'on_add_hook'
  | 'verify';

function volumeInfo(info: ArchiveInfo): VolumeInfo {
  return {
    volname: volnameOf(info.name),
    vmid: info.vmid,
    subtype: info.vmtype,
    size: info.size,
    ctime: Math.floor(info.startTime.getTime() / 1000),
    protected: info.protected,
    ...(info.notes !== undefined && { notes: info.notes }),
    ...(info.approximateSize && { 'approximate-size': true }),
    ...(info.encrypted !== undefined && { encrypted: info.encrypted }),
    ...(info.verification !== undefined && { verification: info.verification }),
  };
}

/** `work`, but who asks while it is under way gets the same answer: what hangs must not pile up [A12]. */
function oneAtATime<T>(work: () => Promise<T>): () => Promise<T> {
  let running: Promise<T> | undefined;
  return () => {
    running ??= work().finally(() => {
      running = undefined;
    });
    return running;
  };
}

/** What the storage plugin asks [D4 to D8]. */
export function storageHandlers(context: Context): Pick<Handlers, StorageMethod> {
  const { provider } = context;
  const archive = (volname: string) => archiveOf(provider, volname);
  /** Providers may answer from a cache, with the same thousands of objects each time. */
  const volumeInfos = new WeakMap<ArchiveInfo, VolumeInfo>();
  const volumeInfoOf = (info: ArchiveInfo): VolumeInfo => {
    const found = volumeInfos.get(info) ?? volumeInfo(info);
    volumeInfos.set(info, found);
    return found;
  };
  const askStatus = oneAtATime(async () => provider.status());
  return {
    check_connection: async () => {
      await askStatus();
      return {};
    },
    status: async () => {
      const { total, used, available } = await askStatus();
      return { total, used, avail: available };
    },
    list_volumes: async ({ vmid }) => {
      const archives = await provider.listArchives(vmid === undefined ? {} : { vmid });
      return archives.map(volumeInfoOf);
    },
    volume_size_info: async ({ volname }) => {
      const { size } = (await archive(volname)).info;
      return { size, used: size };
    },
    get_volume_attribute: async ({ volname, attribute }) => {
      const { info } = await archive(volname);
      return { value: attribute === 'notes' ? (info.notes ?? '') : info.protected };
    },
    update_volume_attribute: async (params) => {
      const target = await archive(params.volname);
      if (params.attribute === 'notes') await target.setNotes(params.value);
      else await target.setProtected(params.value);
      return {};
    },
    free_image: async ({ volname }) => {
      await (await archive(volname)).remove();
      return {};
    },
    reclaim_space: async () => {
      await provider.reclaim?.();
      return {};
    },
    get_identity: async () => {
      const identity = await provider.identity?.();
      if (identity === undefined) throw new BackupError(`${context.title} has no identity to tell`);
      return { identity };
    },
    on_add_hook: async () => {
      await provider.setUp?.();
      return {};
    },
    verify: (params, signal) => verify(context, params, signal),
  };
}
