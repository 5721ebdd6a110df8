import type { Dirent } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { BackupError } from '../../protocol/errors.ts';
import { codeOf } from './files.ts';
import { type Layout, parseArchiveName, suffix } from './layout.ts';

const isGuest = /^[1-9]\d{0,8}$/;

async function entriesOf(path: string): Promise<Dirent[]> {
  try {
    return await readdir(path, { withFileTypes: true });
  } catch (error) {
    // Removed meanwhile, or never there.
    if (codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR') return [];
    throw error;
  }
}

/** The names of the directories in a directory; links are none. */
async function directoriesIn(path: string): Promise<string[]> {
  return (await entriesOf(path)).filter((entry) => entry.isDirectory()).map(({ name }) => name);
}

/** The guests that have a directory. */
export async function guestsIn(layout: Layout): Promise<number[]> {
  const names = await directoriesIn(layout.path);
  return names.filter((name) => isGuest.test(name)).map(Number);
}

/** `VMID/NAME` of each directory of each guest: archives and what may become or has been one. */
async function* guestEntries(layout: Layout, vmid?: number): AsyncGenerator<string> {
  for (const guest of vmid === undefined ? await guestsIn(layout) : [vmid]) {
    for (const name of await directoriesIn(layout.guest(guest))) yield join(String(guest), name);
  }
}

/** The names of committed archives, ours and the example's, as their directories say. */
export async function* archiveNames(layout: Layout, vmid?: number): AsyncGenerator<string> {
  for await (const entry of guestEntries(layout, vmid)) {
    if (parseArchiveName(entry) !== undefined) yield entry;
  }
}

/** Directories that end in `suffix`: `VMID/NAME.SUFFIX`. */
export async function* entriesWith(layout: Layout, suffix: string): AsyncGenerator<string> {
  for await (const entry of guestEntries(layout)) {
    if (entry.endsWith(suffix)) yield entry;
  }
}

/**
 * Every directory that may hold indexes: archives, running and dead backups, but not what is being removed.
 * Rejects where a link may hide some: the chunks that they name would be taken for garbage.
 */
export async function* indexHolders(layout: Layout): AsyncGenerator<string> {
  for (const guest of await entriesOf(layout.path)) {
    if (!isGuest.test(guest.name)) continue;
    refuseLink(layout.path, guest);
    for (const entry of await entriesOf(layout.guest(Number(guest.name)))) {
      refuseLink(layout.guest(Number(guest.name)), entry);
      if (entry.isDirectory() && !entry.name.endsWith(suffix.removed)) {
        yield join(guest.name, entry.name);
      }
    }
  }
}

function refuseLink(directory: string, entry: Dirent): void {
  if (!entry.isSymbolicLink()) return;
  throw new BackupError(
    `${join(directory, entry.name)} is a symbolic link: no space is freed in this store until it is gone`,
  );
}

/** The two-digit directories of chunks and the names in each. */
export async function* chunkFiles(
  layout: Layout,
): AsyncGenerator<{ directory: string; names: string[] }> {
  for (const part of await directoriesIn(layout.chunks)) {
    if (!/^[0-9a-f]{2}$/.test(part)) continue;
    const directory = join(layout.chunks, part);
    yield { directory, names: await readdir(directory) };
  }
}
