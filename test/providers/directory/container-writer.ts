import definition from '../../../src/providers/directory/index.ts';
import { makeLog } from './memory-volume.ts';
import { ProgramTree } from './program-tree.ts';

/** A backup of a container that never ends, in a process of its own, which says so when the tar grows. */
const [path = '', runDir = ''] = process.argv.slice(2);
const { signal } = new AbortController();
const provider = definition.open({
  id: 'store',
  options: { path, 'bridge-dir-compression': 'none' },
  secrets: {},
  log: makeLog(),
  cluster: 'cluster one',
  runDir,
  cacheDir: runDir,
  signal,
});
const startTime = new Date('2026-11-23T12:00:00Z');
const backup = await provider.backupContainer?.({ vmid: 300, vmtype: 'lxc', startTime });
const endless = ['sh', '-c', 'head -c 20000000 /dev/urandom; echo writing >&2; exec sleep 600'];
await backup?.run({
  guestConfig: Buffer.from('hostname: dead\n'),
  tree: new ProgramTree('/', endless),
  exclude: [],
  log: makeLog(),
  signal,
});
