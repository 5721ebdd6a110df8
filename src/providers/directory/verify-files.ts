import { createHash } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { BackupError, isBackupError, messageOf } from '../../protocol/errors.ts';
import type { ArchiveRecord } from './archive-record.ts';
import { codeOf, withRegularFile } from './files.ts';
import { type Layout, member } from './layout.ts';

const step = 1024 * 1024;
/** What a link that must not be followed, a directory or a lost sector answers with. */
const faults: Readonly<Record<string, string>> = {
  ENOENT: 'is missing',
  ELOOP: 'is a symbolic link',
  EISDIR: 'is a directory',
  EIO: 'cannot be read: the disk has an error there',
};

/** What is wrong with a file, by the error that it gave; rethrows what is not the file's fault. */
export function faultOf(file: string, error: unknown): string {
  const fault = faults[codeOf(error) ?? ''];
  if (fault !== undefined) return `${file} ${fault}`;
  if (isBackupError(error)) return messageOf(error);
  throw error;
}

/** The SHA-256 of a regular file, in pieces. */
async function hashFile(path: string, onRead: (bytes: number) => void): Promise<string> {
  const hash = createHash('sha256');
  await withRegularFile(path, async (file) => {
    const piece = Buffer.allocUnsafeSlow(step);
    for (;;) {
      const { bytesRead } = await file.read(piece, 0, step);
      if (bytesRead === 0) return;
      hash.update(piece.subarray(0, bytesRead));
      onRead(bytesRead);
    }
  });
  return hash.digest('hex');
}

/** Compares configs and tar with their digests in the record; a line for each fault. */
export async function verifyFiles(
  layout: Layout,
  name: string,
  record: ArchiveRecord,
  onRead: (file: string, bytes: number) => void,
): Promise<string[]> {
  const directory = layout.archive(name);
  const problems: string[] = [];
  for (const [file, digest] of Object.entries(record.files)) {
    if (basename(file) !== file) throw new BackupError(`${file} is no name of an archive's file`);
    try {
      const found = await hashFile(join(directory, file), (bytes) => onRead(file, bytes));
      if (found !== digest) problems.push(`${file} is damaged`);
    } catch (error) {
      problems.push(faultOf(file, error));
    }
  }
  return [...problems, ...(await strangers(directory, record))];
}

/** A restore would take these although the backup did not write them. */
async function strangers(directory: string, record: ArchiveRecord): Promise<string[]> {
  const configs: readonly string[] = [member.guestConfig, member.firewallConfig];
  const found = (await readdir(directory)).filter(
    (file) => configs.includes(file) && !(file in record.files),
  );
  return found.map((file) => `${file} is not part of the archive`);
}
