import { createHash } from 'node:crypto';
import { join } from 'node:path';
import * as z from 'zod';
import { BackupError } from '../../protocol/errors.ts';
import { deviceName, size, vmid, vmtype } from '../../protocol/model.ts';
import { readBounded } from './files.ts';
import { chunkSize, type Layout, member } from './layout.ts';

const sha256 = z.string().regex(/^[0-9a-f]{64}$/);

/** What archive.json says; written last, so that an archive that has it is whole. */
const archiveRecord = z.object({
  format: z.literal(1),
  /** By which the bitmap ledger knows the archive [B15]. */
  archiveId: z.uuid(),
  vmid,
  vmtype,
  startTime: z.iso.datetime(),
  /** What wrote it. */
  tool: z.string(),
  chunkSize: z.literal(chunkSize),
  /** Per device its size in bytes and the SHA-256 of its index file. */
  volumes: z.record(deviceName, z.object({ size, index: sha256 })),
  /** Of a container: the file that holds its tree, the bytes of that, and what it holds. */
  container: z
    .object({
      tar: z.enum([member.tar, member.tarZstd]),
      size,
      /** Members of the tar. */
      entries: size,
      /** Of the tar, before it was compressed. */
      bytes: size,
    })
    .optional(),
  /** SHA-256 of the files next to this one. */
  files: z.record(z.string(), sha256),
  /**
   * Bytes by which this backup made the store grow: chunks that were new, indexes, configs, a container's
   * tar. Of a VM it does not say what removing this archive would free.
   */
  storedBytes: size,
});

export type ArchiveRecord = z.output<typeof archiveRecord>;

/** Bytes that archive.json may have. */
export const maxRecord = 1024 * 1024;

/** Reads what may be damaged, or written by another version. */
export async function readRecord(layout: Layout, name: string): Promise<ArchiveRecord> {
  const path = join(layout.archive(name), member.record);
  return parseRecord(await readBounded(path, maxRecord), path);
}

/** `path` is for the error. */
export function parseRecord(text: Buffer, path: string): ArchiveRecord {
  try {
    return archiveRecord.parse(JSON.parse(proveText(text.toString())));
  } catch (cause) {
    throw new BackupError(`${path} is damaged or of another version`, { cause });
  }
}

/**
 * What PVE lists: of a VM the bytes that a restore writes, since what an incremental archive added to the store
 * would only make it look empty; of a container, which shares nothing, the bytes that are stored.
 */
export function archiveSizeOf(
  record: Pick<ArchiveRecord, 'volumes' | 'container' | 'storedBytes'>,
): number {
  const { volumes, container, storedBytes } = record;
  if (container !== undefined) return storedBytes;
  return Object.values(volumes).reduce((sum, volume) => sum + volume.size, 0);
}

/** The last key of archive.json: the SHA-256 of its text with this in the digest's place. */
const noDigest = '0'.repeat(64);
const ending = '"\n}\n';

/** The text with another digest at its end. */
const withDigest = (text: string, digest: string) =>
  text.slice(0, -(digest.length + ending.length)) + digest + ending;

const digestOf = (text: string) => createHash('sha256').update(text).digest('hex');

/** Rejects text that is not what was written: a changed number may still look like one. */
function proveText(text: string): string {
  if (text === withDigest(text, digestOf(withDigest(text, noDigest)))) return text;
  throw new Error('its SHA-256 is not what it says itself');
}

/** The bytes of archive.json. */
export function encodeRecord(record: ArchiveRecord): string {
  const text = `${JSON.stringify({ ...record, sha256: noDigest }, null, 2)}\n`;
  return withDigest(text, digestOf(text));
}
