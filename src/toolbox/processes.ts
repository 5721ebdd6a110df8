import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

/**
 * When the process started, in clock ticks since boot (field 22 of /proc/PID/stat): with the pid it names
 * one process for ever. Undefined if there is none, or only its zombie.
 */
export async function processStartTime(pid: number): Promise<number | undefined> {
  return readFile(`/proc/${pid}/stat`, 'latin1').then(parseStartTime, () => undefined);
}

/** The same without a promise: it needs no thread of a pool that a hung store may have to itself. */
export function processStartTimeSync(pid: number): number | undefined {
  try {
    return parseStartTime(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch {
    return undefined;
  }
}

function parseStartTime(stat: string): number | undefined {
  // The command's name stands in parentheses and may hold spaces and parentheses itself.
  const [state, ...fields] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  if (state === 'Z' || state === 'X') return undefined;
  const startTime = Number(fields[18]);
  return Number.isSafeInteger(startTime) ? startTime : undefined;
}

/** True if the process that had this pid and start time still runs. */
export async function isSameProcess(pid: number, startTime: number): Promise<boolean> {
  return (await processStartTime(pid)) === startTime;
}
