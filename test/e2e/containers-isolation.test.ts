import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { mixedIdMap } from '../../fixtures/rootfs/id-map.ts';
import { withUserNamespace } from '../../fixtures/rootfs/user-namespace.ts';
import { ContainerBench } from './support/containers.ts';

let bench: ContainerBench;

beforeAll(async () => {
  bench = await ContainerBench.create();
  await bench.add({ vmid: 101, files: 300, features: [] });
});
afterAll(() => bench.close());

/** Prints those of the paths on its input that can be read, listed, written or connected to. */
const intruder = `
use v5.36;
use Socket;
while (my $path = <STDIN>) {
    chomp($path);
    socket(my $socket, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die;
    my $found = opendir(my $dir, $path);
    open(my $file, '<', $path) and $found = 1 if !$found;
    open($file, '>>', $path) and $found = 1 if !$found;
    $found = 1 if !$found && length($path) < 108 && connect($socket, pack_sockaddr_un($path));
    say $path if $found;
}
say for grep { !m/^\\/proc\\/$$\\// } glob('/proc/[0-9]*/fd/*');
`;

/** What a process with the container's ids, and namespaces of its own, can get at. */
function intrude(paths: readonly string[]): Promise<string[]> {
  return withUserNamespace(mixedIdMap, async (enter) => {
    const own = ['--mount', '--pid', '--fork', '--mount-proc'];
    const [program, ...args] = enter('unshare', ...own, 'perl', '-e', intruder);
    const { stdout } = await execa(program, args, { cwd: '/', input: paths.join('\n') });
    return stdout.split('\n').filter((line) => line.startsWith(bench.node.root));
  });
}

async function everythingBelow(directory: string): Promise<string[]> {
  const { stdout } = await execa('find', [directory]);
  return stdout.split('\n');
}

test('the provider, its secrets, its store and its sockets are out of reach from inside', async () => {
  const { root } = bench.node;
  const secret = join(root, 'etc/pve/priv/storage/vault.password');
  await mkdir(join(secret, '..'), { recursive: true });
  await writeFile(secret, 'secret', { mode: 0o600 });
  const control = join(root, 'open-to-all');
  await writeFile(control, 'no secret', { mode: 0o644 });

  const vzdump = bench.node.vzdump([101], { storage: 'vault', bwlimit: 512 });
  await expect
    .poll(() => everythingBelow(bench.store), { timeout: 20_000 })
    .toContainEqual(expect.stringMatching(/\.partial\/archive\.tar/));
  const places = ['run/pve-backup-bridge', 'var/log/pve-backup-bridge', 'var/cache', 'etc/pve'];
  const below = await Promise.all(places.map((place) => everythingBelow(join(root, place))));
  const archives = (await everythingBelow(bench.store)).filter((path) => path !== bench.store);
  const readable = await intrude([control, secret, ...below.flat(), ...archives]);
  expect(vzdump.exitCode, 'the backup is still under way').toBeNull();
  const { exitCode, all } = await vzdump;
  expect(exitCode, all).toBe(0);
  expect(below.flat().length + archives.length).toBeGreaterThan(10);
  expect(readable.filter((path) => !path.endsWith('/var/cache'))).toEqual([control]);
});
