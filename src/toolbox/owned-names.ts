import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from '../sdk/provider.ts';
import { isSameProcess, processStartTime } from './processes.ts';

/** What stands around the owned part of a name. */
export interface NameFrame {
  readonly prefix?: string;
  readonly suffix?: string;
}

let count = 0;

/** A new name that tells which process it belongs to: `PREFIX` PID-STARTTIME-COUNT `SUFFIX`. */
export async function ownedName({ prefix = '', suffix = '' }: NameFrame = {}): Promise<string> {
  const startTime = await processStartTime(process.pid);
  return `${prefix}${process.pid}-${startTime}-${++count}${suffix}`;
}

/**
 * Calls `remove` for every such name whose process has died; those of living ones stay. Never rejects: no
 * leftover is worth a job or a restore, and another process may be collecting it too.
 */
export async function collectStale(
  directory: string,
  options: NameFrame & { readonly log: Logger },
  remove: (path: string) => Promise<void>,
): Promise<void> {
  const { prefix = '', suffix = '', log } = options;
  for (const entry of await readdir(directory).catch(() => [])) {
    if (!entry.startsWith(prefix) || !entry.endsWith(suffix)) continue;
    const owned = entry.slice(prefix.length, entry.length - suffix.length);
    const [, pid, startTime] = /^(\d+)-(\d+)-\d+$/.exec(owned) ?? [];
    if (pid === undefined || (await isSameProcess(Number(pid), Number(startTime)))) continue;
    const path = join(directory, entry);
    await remove(path).catch((error: unknown) =>
      log.debug('cannot remove what a dead process left', { path, error: String(error) }),
    );
  }
}
