import { createHash } from 'node:crypto';
import { lstat } from 'node:fs/promises';
import { join } from 'node:path';
import { BackupError } from '../../protocol/errors.ts';
import type { ArchiveRecord } from './archive-record.ts';
import { digestLength } from './chunk-codec.ts';
import { chunkCount, DiskIndex } from './disk-index.ts';
import { ifMissing, readBounded } from './files.ts';
import { type Layout, member } from './layout.ts';

const maxConfig = 16 * 1024 * 1024;

/** Lower-case hexadecimal. */
export const sha256 = (bytes: Uint8Array): string =>
  createHash('sha256').update(bytes).digest('hex');

/** A config as it was backed up, byte for byte [B16]; undefined if there is none. */
export async function readConfig(
  layout: Layout,
  name: string,
  file: string,
): Promise<Buffer | undefined> {
  return readBounded(join(layout.archive(name), file), maxConfig).catch(ifMissing);
}

/** The index of a device, proved by its digest in the record. */
export async function readIndex(
  layout: Layout,
  name: string,
  device: string,
  record: ArchiveRecord,
): Promise<DiskIndex> {
  const volume = record.volumes[device];
  if (volume === undefined) throw new BackupError(`archive ${name} has no device ${device}`);
  const length = chunkCount(volume.size) * digestLength;
  const bytes = await readBounded(join(layout.archive(name), member.index(device)), length);
  if (bytes.length !== length || sha256(bytes) !== volume.index) {
    throw new BackupError(`archive ${name}: the index of ${device} is damaged`);
  }
  return new DiskIndex(volume.size, bytes);
}

/** True if the archive has a file of that name, whatever is in it. */
export async function hasMember(layout: Layout, name: string, file: string): Promise<boolean> {
  return (await lstat(join(layout.archive(name), file)).catch(ifMissing)) !== undefined;
}
