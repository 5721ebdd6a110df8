import { lstat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { BackupError } from '../../protocol/errors.ts';
import { ifMissing } from './files.ts';
import type { Layout } from './layout.ts';

/** The path of an archive's file, which is neither a link nor below one. */
export async function regularMember(layout: Layout, name: string, file: string): Promise<string> {
  const directory = layout.archive(name);
  for (const path of [dirname(directory), directory]) {
    if (!(await lstat(path)).isDirectory()) throw new BackupError(`${path} is not a directory`);
  }
  const path = join(directory, file);
  const stats = await lstat(path).catch(ifMissing);
  if (stats === undefined) throw new BackupError(`archive ${name} has no ${file}`);
  if (!stats.isFile()) throw new BackupError(`${path} is not a regular file`);
  return path;
}

/** The path of a tar that has the length it was written with. */
export async function proveTar(
  layout: Layout,
  name: string,
  { tar, size }: { tar: string; size: number },
): Promise<string> {
  const path = await regularMember(layout, name, tar);
  const found = (await lstat(path)).size;
  if (found === size) return path;
  throw new BackupError(`archive ${name}: ${tar} is damaged: it has ${found} of ${size} bytes`);
}
