import type { Logger } from '../sdk/provider.ts';
import { collectStaleViews } from './device-overlay.ts';
import { collectStaleExports } from './image-export.ts';
import { collectStaleCopies } from './tar-prepare.ts';

export interface StaleRestores {
  /** Of `exportImage` and `hideDevices`. */
  readonly mounts: string;
  /** Of `prepareTar`. */
  readonly scratch: string;
  readonly log: Logger;
}

/** Removes all that killed processes left of their restores; never rejects, and touches nothing of living ones. */
export async function collectStaleRestores({ mounts, scratch, log }: StaleRestores): Promise<void> {
  await collectStaleExports(mounts, log);
  await collectStaleViews(mounts, log);
  await collectStaleCopies(scratch, log);
}
