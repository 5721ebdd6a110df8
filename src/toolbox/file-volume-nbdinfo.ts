import { readdir, readFile } from 'node:fs/promises';
import { BackupError } from '../protocol/errors.ts';

/**
 * Rejects if a program of this name that `parent` started has failed. PVE reads dirty regions from nbdinfo
 * and takes its end for the end of the list, however it came about: what was changed would be left out.
 */
export async function assertNoneFailed(parent: number, name: string): Promise<void> {
  for (const pid of await childrenOf(parent)) {
    const stat = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '');
    if (!stat.includes(` (${name}) `)) continue;
    // Its last field: 0 too for one that still runs.
    const status = Number(stat.trimEnd().split(' ').pop());
    if (status === 0) continue;
    const how = (status & 0x7f) === 0 ? `exit status ${status >> 8}` : `signal ${status & 0x7f}`;
    throw new BackupError(`${name} failed (${how}), so the dirty bitmap is not known: try again`);
  }
}

/** Nobody but the parent reaps them, so those that have ended are still there. */
async function childrenOf(parent: number): Promise<string[]> {
  const threads = await readdir(`/proc/${parent}/task`).catch(() => []);
  const lists = threads.map((thread) =>
    readFile(`/proc/${parent}/task/${thread}/children`, 'latin1').catch(() => ''),
  );
  return (await Promise.all(lists)).flatMap((list) => list.split(' ').filter(Boolean));
}
