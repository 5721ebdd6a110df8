import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from '../sdk/provider.ts';
import { collectStale, ownedName } from './owned-names.ts';
import { checkTar } from './tar-check.ts';
import { deviceWarning } from './tar-devices.ts';
import { withoutDevices } from './tar-filter.ts';

const suffix = '.tar.zst';

export interface PrepareTarOptions {
  /** Where a copy without device nodes goes, if one is needed; made if missing. */
  readonly scratch: string;
  readonly log: Logger;
  readonly signal: AbortSignal;
  /** What the file's SHA-256 must be, in lower-case hexadecimal, if it is known. */
  readonly sha256?: string | undefined;
}

/** What PVE may be given in place of the archive; `close` is idempotent. */
export interface PreparedTar {
  readonly path: string;
  close(): Promise<void>;
}

/**
 * Checks a container's archive and gives what PVE can extract in an unprivileged container [C7]: the archive
 * itself, or a copy without the device nodes that cannot be created there.
 */
export async function prepareTar(path: string, options: PrepareTarOptions): Promise<PreparedTar> {
  const { scratch, log, signal, sha256 } = options;
  const report = await checkTar(path, { log, signal, sha256 });
  if (report.deviceCount === 0) return { path, close: async () => undefined };
  log.warn(deviceWarning(report.devices, report.deviceCount));
  await mkdir(scratch, { recursive: true, mode: 0o700 });
  const copy = join(scratch, await ownedName({ suffix }));
  await withoutDevices(path, copy, { log, signal, sha256 });
  return { path: copy, close: () => rm(copy, { force: true }) };
}

/** Removes the copies of killed processes; those of living ones stay. */
export async function collectStaleCopies(scratch: string, log: Logger): Promise<void> {
  await collectStale(scratch, { suffix, log }, (copy) => rm(copy, { force: true }));
}
