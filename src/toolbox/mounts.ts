import { readFile } from 'node:fs/promises';
import { run } from './run.ts';

/** The lines of proc(5)'s mountinfo about what is mounted right there, the oldest first. */
export async function mountsOn(directory: string): Promise<string[]> {
  const table = await readFile('/proc/self/mountinfo', 'utf8');
  const wanted = directory.replace(
    /[ \t\n\\]/g,
    (c) => `\\${c.charCodeAt(0).toString(8).padStart(3, '0')}`,
  );
  return table.split('\n').filter((line) => line.split(' ')[4] === wanted);
}

/** True if something is mounted right there. */
export async function isMounted(directory: string): Promise<boolean> {
  return (await mountsOn(directory)).length > 0;
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

/** The same with all that is mounted below; whoever has a file of it open keeps that. */
export async function detach(directory: string): Promise<void> {
  if (await isMounted(directory)) await run('umount', ['--no-canonicalize', '--lazy', directory]);
}
