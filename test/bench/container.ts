import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { HostProcess, startTime } from '../../fixtures/host/host-process.ts';
import { type BulkOptions, makeBulkFiles } from '../../fixtures/rootfs/plain-files.ts';
import { pveTarFlags } from '../../fixtures/rootfs/tar-flags.ts';
import { ask, syncDisks } from './bench-vm.ts';
import { inTurn, type Result, type Row, timed } from './measure.ts';

const rounds = 5;
const least = 0.95;
const vmid = 100;
const GiB = 1024 ** 3;

/** A privileged container in a mount namespace of its own, as vzdump has one. */
async function backUp(root: string, tree: string, second: number): Promise<number> {
  const store = join(root, 'store');
  await mkdir(store);
  const provider = 'dist/providers/bridge-dir';
  const host = await HostProcess.open({ path: store }, { provider, root });
  const caller = execa('unshare', ['--mount', 'sleep', 'infinity'], { reject: false });
  try {
    const pid = caller.pid ?? 0;
    const source = { vmid, directory: tree, sources: ['./'], 'backup-user-id': 0 };
    await ask(host, 'backup_init', { vmid, vmtype: 'lxc', 'start-time': 1_800_000_000 + second });
    await ask(host, 'backup_container_prepare', source);
    const params = {
      ...source,
      caller: { pid, 'start-time': await startTime(pid) },
      'guest-config': '',
      'exclude-patterns': ['/tmp/?*', '/var/tmp/?*', '/var/run/?*.pid'],
    };
    return await timed(() => ask(host, 'backup_container', params));
  } finally {
    caller.kill('SIGKILL');
    await host.call('shutdown');
    await host.exit;
    await rm(store, { recursive: true });
    await rm(join(root, 'var/cache'), { recursive: true, force: true });
  }
}

async function plainTar(root: string, tree: string): Promise<number> {
  const target = join(root, 'plain.tar.zst');
  const command =
    'set -o pipefail; file=$1; shift; tar "$@" . | zstd -q -T0 > "$file" && sync -f "$file"';
  const args = ['-cf', '-', ...pveTarFlags, `--directory=${tree}`];
  try {
    return await timed(() => execa('bash', ['-c', command, 'bash', target, ...args]));
  } finally {
    await rm(target, { force: true });
  }
}

async function measure(name: string, options: BulkOptions): Promise<Result> {
  const root = await mkdtemp(join(tmpdir(), 'bench-'));
  const tree = join(root, 'rootfs');
  let second = 0;
  try {
    await mkdir(tree);
    await makeBulkFiles(tree, options);
    const quiet = async (work: () => Promise<number>) => {
      await syncDisks(root);
      return work();
    };
    const { ours, theirs } = await inTurn(
      rounds,
      () => quiet(() => backUp(root, tree, second++)),
      () => quiet(() => plainTar(root, tree)),
    );
    const ratio = theirs / ours;
    const target = `>= ${least}`;
    return {
      row: `container, ${name}`,
      ours,
      theirs,
      unit: 's',
      ratio,
      target,
      met: ratio >= least,
    };
  } finally {
    await rm(root, { recursive: true, force: true });
  }
}

export const containerRow: Row = {
  name: 'container',
  opponent: 'tar | zstd -T0 to a file, and sync',
  run: async () => [
    await measure('200,000 small files', { smallFiles: 200_000 }),
    await measure('4 GiB of large files', { largeBytes: 4 * GiB }),
  ],
};
