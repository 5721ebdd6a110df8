import { readdir } from 'node:fs/promises';
import { messageOf } from '../../protocol/errors.ts';
import type { BitmapLedger } from '../../sdk/provider.ts';
import { hasMember, readIndex } from './archive-members.ts';
import { readRecord } from './archive-record.ts';
import { archiveNames } from './directories.ts';
import { chunkLength, type DiskIndex } from './disk-index.ts';
import { ifMissing } from './files.ts';
import { member, parseArchiveName } from './layout.ts';
import type { Store } from './store.ts';

/** The archive that an incremental backup of a device starts from. */
export interface Base {
  readonly name: string;
  readonly index: DiskIndex;
}

/** Committed archives of a guest, newest first. */
async function newestFirst(store: Store, vmid: number): Promise<string[]> {
  const found: { name: string; time: number }[] = [];
  for await (const name of archiveNames(store.layout, vmid)) {
    const parsed = parseArchiveName(name);
    if (parsed?.origin === 'bridge' && parsed.vmtype === 'qemu') {
      found.push({ name, time: parsed.startTime.getTime() });
    }
  }
  return found.sort((a, b) => b.time - a.time).map(({ name }) => name);
}

/** True if it names a chunk that was set aside while its backup ran, and that nobody has written since. */
async function lacksChunk({ layout, chunks }: Store, index: DiskIndex): Promise<boolean> {
  const aside = await readdir(layout.damagedChunks).catch(ifMissing);
  const names = new Set(aside?.map((name) => name.replace(/\.br$/, '')));
  if (names.size === 0) return false;
  for (let position = 0; position < index.count; position++) {
    const hex = index.digest(position).toString('hex');
    if (!names.has(hex)) continue;
    if ((await chunks.find(hex, chunkLength(index.size, position))) === undefined) return true;
  }
  return false;
}

/**
 * The newest archive that has the device, if it is the very one that the bitmap counts from, and whole. What
 * cannot be read might have the device, so it ends the search: in doubt all is read anew [B15].
 */
async function findBase(
  store: Store,
  names: readonly string[],
  device: string,
  size: number,
  ledger: BitmapLedger,
): Promise<Base | undefined> {
  for (const name of names) {
    const record = await readRecord(store.layout, name);
    const volume = record.volumes[device];
    if (volume === undefined) continue;
    if (volume.size !== size || !ledger.holds(device, size, record.archiveId)) return undefined;
    if (await hasMember(store.layout, name, member.damaged)) return undefined;
    const index = await readIndex(store.layout, name, device, record);
    return (await lacksChunk(store, index)) ? undefined : { name, index };
  }
  return undefined;
}

/** A base for each device that has one. */
export async function findBases(
  store: Store,
  vmid: number,
  volumes: ReadonlyMap<string, number>,
  ledger: BitmapLedger,
): Promise<Map<string, Base>> {
  const names = await newestFirst(store, vmid);
  const bases = new Map<string, Base>();
  for (const [device, size] of volumes) {
    const base = await findBase(store, names, device, size, ledger).catch((error: unknown) => {
      store.log.warn(`${device} is read in full: ${messageOf(error)}`);
      return undefined;
    });
    if (base !== undefined) bases.set(device, base);
  }
  return bases;
}
