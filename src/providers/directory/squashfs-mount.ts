import { mkdir, readdir, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { ContainerRestore, Logger } from '../../sdk/provider.ts';
import { unmount } from '../../toolbox/mounts.ts';
import { isSameProcess, processStartTime } from '../../toolbox/processes.ts';
import { ReleaseStack } from '../../toolbox/release.ts';
import { run } from '../../toolbox/run.ts';
import { ifMissing } from './files.ts';

const options = 'loop,ro,nodev,nosuid,noexec';
/** With the process that mounted it. */
const mountName = /^squashfs-(\d+)-(\d+)-\d+$/;
let count = 0;

/** Mounts an image read-only in a directory of its own in `runDir`. */
export async function mountSquashfs(
  image: string,
  runDir: string,
  signal: AbortSignal,
): Promise<ContainerRestore> {
  const startTime = await processStartTime(process.pid);
  const path = join(runDir, `squashfs-${process.pid}-${startTime}-${++count}`);
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
  for (const entry of await readdir(runDir).catch(() => [])) {
    const [, pid, startTime] = mountName.exec(entry) ?? [];
    if (pid === undefined || (await isSameProcess(Number(pid), Number(startTime)))) continue;
    const path = join(runDir, entry);
    try {
      await unmount(path);
      await removeEmpty(path);
    } catch (error) {
      // Another process may be collecting it too, and no leftover is worth a job or a restore.
      log.debug('cannot collect what a dead process left', { path, error: String(error) });
    }
  }
}

/** Never recursively: behind a mount that would not go lies the archive. */
async function removeEmpty(path: string): Promise<void> {
  await rmdir(path).catch(ifMissing);
}
