import { mkdir, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { ContainerRestore, Logger } from '../../sdk/provider.ts';
import { unmount } from '../../toolbox/mounts.ts';
import { collectStale, ownedName } from '../../toolbox/owned-names.ts';
import { ReleaseStack } from '../../toolbox/release.ts';
import { run } from '../../toolbox/run.ts';
import { ifMissing } from './files.ts';

const options = 'loop,ro,nodev,nosuid,noexec';
const prefix = 'squashfs-';

/** Mounts an image read-only in a directory of its own in `runDir`. */
export async function mountSquashfs(
  image: string,
  runDir: string,
  signal: AbortSignal,
): Promise<ContainerRestore> {
  const path = join(runDir, await ownedName({ prefix }));
  const taken = new ReleaseStack();
  try {
    await mkdir(path, { mode: 0o700 });
    taken.add(`the directory ${path}`, () => removeEmpty(path));
    taken.add(`the mount ${path}`, () => unmount(path));
    await run('mount', ['-t', 'squashfs', '-o', options, '--', image, path], { signal });
    signal.throwIfAborted();
    return { path, close: () => taken.release() };
  } catch (error) {
    await taken.release().catch(() => undefined);
    throw error;
  }
}

/** Unmounts what killed processes left; the mounts of living ones stay. */
export async function collectStaleMounts(runDir: string, log: Logger): Promise<void> {
  await collectStale(runDir, { prefix, log }, async (path) => {
    await unmount(path);
    await removeEmpty(path);
  });
}

/** Never recursively: behind a mount that would not go lies the archive. */
async function removeEmpty(path: string): Promise<void> {
  await rmdir(path).catch(ifMissing);
}
