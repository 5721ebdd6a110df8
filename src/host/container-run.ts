import { BackupError } from '../protocol/errors.ts';
import type { Params } from '../protocol/methods.ts';
import type { ContainerBackup } from '../sdk/provider.ts';
import { openContainerTree } from '../toolbox/container-tree.ts';
import { isSameProcess } from '../toolbox/processes.ts';
import { decodeConfigs } from './configs.ts';
import type { Context } from './session.ts';

const watchMs = 500;

/** Runs the backup of a container, read in the namespaces of the process that called [A8, A9]. */
export async function runContainerBackup(
  { log }: Context,
  backup: ContainerBackup,
  params: Params<'backup_container'>,
  signal: AbortSignal,
): Promise<void> {
  const { directory, sources } = params;
  const caller = { pid: params.caller.pid, startTime: params.caller['start-time'] };
  const limit = params['bandwidth-limit'];
  const bandwidth = limit ? { bandwidthLimit: limit } : {};
  const killed = new AbortController();
  const stopped = AbortSignal.any([signal, killed.signal]);
  const watch = setInterval(async () => {
    if (await isSameProcess(caller.pid, caller.startTime)) return;
    // PVE goes on as if all were well, and nobody waits for an answer any more [A10].
    killed.abort(new BackupError('the process that backs up the container was killed'));
  }, watchMs);
  try {
    const tree = await openContainerTree({
      caller,
      directory,
      sources,
      userId: params['backup-user-id'],
      ...bandwidth,
      log,
      signal: stopped,
    });
    try {
      await backup.run({
        ...decodeConfigs(params),
        tree,
        exclude: [...params['exclude-patterns'], ...ownFiles(sources)],
        ...bandwidth,
        log,
        signal: stopped,
      });
    } finally {
      await tree.close();
    }
  } finally {
    clearInterval(watch);
  }
}

/**
 * In mode suspend vzdump's copy of the tree, whose only source is `.`, also holds vzdump's own configs. They
 * belong to the node's root, which an id map need not have: their restore would fail.
 */
function ownFiles(sources: readonly string[]): string[] {
  return sources.every((source) => source === '.') ? ['/etc/vzdump'] : [];
}
