import { readFile } from 'node:fs/promises';
import { run } from './run.ts';

/** True if something is mounted right there. */
export async function isMounted(directory: string): Promise<boolean> {
  const table = await readFile('/proc/self/mountinfo', 'utf8');
  const wanted = directory.replace(
    /[ \t\n\\]/g,
    (c) => `\\${c.charCodeAt(0).toString(8).padStart(3, '0')}`,
  );
  return table.split('\n').some((line) => line.split(' ')[4] === wanted);
}

/** Takes the mount out of the tree, even if files of it are still open. */
export async function unmount(directory: string): Promise<void> {
  if (!(await isMounted(directory))) return;
  try {
    await run('umount', ['--no-canonicalize', directory]);
  } catch {
    await run('umount', ['--no-canonicalize', '--lazy', directory]);
  }
}
