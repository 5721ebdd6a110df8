import { writeFile } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import type { DeviceName } from '../sdk/provider.ts';
import { deviceNumbers } from './device-numbers.ts';
import { mountsOn } from './mounts.ts';
import { run } from './run.ts';

/** A volume's file, as it was when it was opened. */
export interface OpenedFile {
  readonly fd: number;
  readonly path: string;
  /** Of its file system, st_dev. */
  readonly dev: number;
}

/**
 * Ends the nbdfuse that shows a volume as a file. A killed vzdump leaves it, and the process that waits for
 * it holds the lock of all backups of the node [A6]. Where fusectl is mounted the connection is cut first:
 * that ends reads that hang, and works for mounts of another namespace [A7].
 */
export async function endNbdfuse(device: DeviceName, { path, dev }: OpenedFile): Promise<void> {
  // Of mounts it is always the only file.
  if (basename(path) !== device) return;
  const abort = `/sys/fs/fuse/connections/${deviceNumbers(dev).minor}/abort`;
  await writeFile(abort, '1', { flag: 'r+' }).catch(() => undefined);
  const directory = dirname(path);
  const mounts = await mountsOn(directory);
  if (!/ - fuse\S* /.test(mounts[0] ?? '')) return;
  await run('umount', ['--no-canonicalize', '--internal-only', '--force', '--lazy', directory]);
}
