import { join } from 'node:path';

/** Where things lie on a node, below `root`, which is empty but in tests. */
export function nodePaths(root: string, storeid: string) {
  return {
    logFile: join(root, '/var/log/pve-backup-bridge', `${storeid}.log`),
    runDir: join(root, '/run/pve-backup-bridge/storages', storeid),
    mounts: join(root, '/run/pve-backup-bridge/mounts'),
    cacheDir: join(root, '/var/cache/pve-backup-bridge', storeid),
    secretFile: (name: string) => join(root, '/etc/pve/priv/storage', `${storeid}.${name}`),
    corosyncConf: join(root, '/etc/pve/corosync.conf'),
    machineId: join(root, '/etc/machine-id'),
  };
}

export type NodePaths = ReturnType<typeof nodePaths>;
