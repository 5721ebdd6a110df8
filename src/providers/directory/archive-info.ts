import { closeSync, fstatSync, openSync, readdirSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { BackupError, isBackupError } from '../../protocol/errors.ts';
import type { ArchiveInfo } from '../../sdk/provider.ts';
import { type ArchiveRecord, archiveSizeOf, maxRecord, parseRecord } from './archive-record.ts';
import { assertRegular, codeOf, untrustedFlags } from './files.ts';
import { type Layout, member, type ParsedName } from './layout.ts';
import { maxVerification, parseVerification } from './verify-result.ts';

/** Bytes of notes that an archive may have. */
export const maxNotes = 1024 * 1024;

/**
 * The small files of an archive. Read without a promise each, which for a list of thousands would take longer
 * than the files themselves: only to be used where the store has just answered, and not for long at a time.
 */
class ArchiveFiles {
  readonly #directory: string;
  readonly #names: ReadonlySet<string>;

  constructor(layout: Layout, name: string) {
    this.#directory = layout.archive(name);
    this.#names = new Set(readdirSync(this.#directory));
  }

  /** True if there is something of that name, whatever it is. */
  has(file: string): boolean {
    return this.#names.has(file);
  }

  path(file: string): string {
    return join(this.#directory, file);
  }

  /** The content, undefined if there is none. */
  read(file: string, limit: number): Buffer | undefined {
    return this.has(file) ? readBoundedSync(this.path(file), limit) : undefined;
  }
}

/** As `readBounded`: no links, no devices, no more than `limit` bytes. */
function readBoundedSync(path: string, limit: number): Buffer {
  const fd = openSync(path, untrustedFlags);
  try {
    const stats = fstatSync(fd);
    assertRegular(path, stats, limit);
    const content = Buffer.allocUnsafe(stats.size);
    return content.subarray(0, readSync(fd, content, 0, content.length, 0));
  } finally {
    closeSync(fd);
  }
}

/** What PVE lists of an archive, whichever format it has. */
export function describeArchive(
  layout: Layout,
  name: string,
  parsed: ParsedName,
  size: number,
  files = new ArchiveFiles(layout, name),
): ArchiveInfo {
  const { vmid, vmtype, startTime } = parsed;
  const notes = files.read(member.notes, maxNotes)?.toString('utf8');
  const verification = parseVerification(() => files.read(member.verification, maxVerification));
  return {
    name,
    vmid,
    vmtype,
    startTime,
    size: Math.max(size, 1),
    protected: files.has(member.protection),
    ...(notes !== undefined && { notes }),
    ...(verification !== undefined && { verification }),
  };
}

/**
 * The same of an archive of ours, and its record, or what is wrong with that: the archive is listed all the same, so
 * that somebody sees and removes it. Throws where there is none.
 */
export function readArchive(
  layout: Layout,
  name: string,
  parsed: ParsedName,
): { record: ArchiveRecord | BackupError; info: ArchiveInfo } {
  const files = new ArchiveFiles(layout, name);
  const path = files.path(member.record);
  try {
    const record = parseRecord(readBoundedSync(path, maxRecord), path);
    const info = describeArchive(layout, name, parsed, archiveSizeOf(record), files);
    return { record, info };
  } catch (error) {
    const isItsOwn =
      isBackupError(error) || ['ENOENT', 'ELOOP', 'EIO'].includes(codeOf(error) ?? '');
    // An empty directory is no archive.
    if (!isItsOwn || !files.has(member.guestConfig)) throw error;
    const info = describeArchive(layout, name, parsed, 0, files);
    const text = `archive ${name} has no ${member.record} that can be read: remove it`;
    const record = isBackupError(error) ? error : new BackupError(text, { cause: error });
    return { record, info };
  }
}
