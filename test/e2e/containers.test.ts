import { chmod, copyFile, mkdir, mkdtemp, readdir, readFile, rmdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { formatComparison } from '../../fixtures/rootfs/comparison-table.ts';
import type { Tree } from '../../fixtures/rootfs/describe.ts';
import { usualFeatures } from '../../fixtures/rootfs/features/index.ts';
import { mixedIdMap, privileged } from '../../fixtures/rootfs/id-map.ts';
import { pveTarFlags } from '../../fixtures/rootfs/tar-flags.ts';
import { withUserNamespace } from '../../fixtures/rootfs/user-namespace.ts';
import { startBench } from './support/bench.ts';
import { ContainerBench } from './support/containers.ts';

const KiB = 1024;
let bench: ContainerBench;
let before: Tree;

beforeAll(async () => {
  bench = await ContainerBench.create();
  await bench.add({ vmid: 101, mountPoints: true });
  before = await bench.describe(101);
});
afterAll(() => bench.close());

test('A8, B8, C2, C7: every attribute of an unprivileged container comes back', async () => {
  const config = await readFile(bench.node.containerConfigPath(101), 'utf8');
  const { exitCode, log, volids } = await bench.backUp([101]);
  expect(exitCode, log).toBe(0);
  const [volid = ''] = volids;
  expect(Buffer.from(await bench.node.extractConfig(volid)).toString()).toBe(config);
  const restored = await bench.restore(volid, 901);
  expect(restored.exitCode, restored.log).toBe(0);
  const comparison = await bench.compare(101, 901, { before });
  console.log(formatComparison(comparison));
  expect(comparison.differences).toEqual([]);
  expect(comparison.entries).toBeGreaterThan(3000);
});

test('B9: what the job excludes is left out, with and without a leading slash', async () => {
  const excludePaths = ['/usr/share/files/1', 'file-5?', '/mnt/**/first'];
  const { exitCode, log, volids } = await bench.backUp([101], { excludePaths });
  expect(exitCode, log).toBe(0);
  const restored = await bench.restore(volids[0] ?? '', 902);
  expect(restored.exitCode, restored.log).toBe(0);
  const comparison = await bench.compare(101, 902, { before, excludes: excludePaths });
  const missing = comparison.differences.filter(({ attribute }) => attribute === 'presence');
  expect(missing).toEqual([]);
  const excluded = comparison.notRestored.find(({ reason }) => reason === 'excluded');
  expect(excluded?.names).toContain('usr/share/files/1');
  expect(excluded?.names).toContain('mnt/data/own/first');
  expect(excluded?.names.filter((name) => /\/file-5\d$/.test(name))).toHaveLength(10);
});

test('B8: mode suspend, where vzdump has copied the tree before', async () => {
  const { exitCode, log, volids } = await bench.backUp([101], { mode: 'suspend' });
  expect(exitCode, log).toBe(0);
  const restored = await bench.restore(volids[0] ?? '', 903);
  expect(restored.exitCode, restored.log).toBe(0);
  const { differences } = await bench.compare(101, 903, { before });
  // vzdump makes a directory there in its copy.
  expect(differences.filter(({ name }) => name !== 'etc')).toEqual([]);
});

describe('uncompressed', () => {
  test('archive.tar is what plain tar reads, and restores', async () => {
    const plain = await ContainerBench.create({ 'bridge-dir-compression': 'none' });
    try {
      await plain.add({ vmid: 101, files: 100, features: ['acls', 'capabilities'] });
      const { exitCode, log, volids } = await plain.backUp([101], { bwlimit: 4096 });
      expect(exitCode, log).toBe(0);
      const [volid = ''] = volids;
      const name = volid.replace('vault:backup/', '');
      expect(await readdir(join(plain.store, name))).toContain('archive.tar');
      const restored = await plain.restore(volid, 901);
      expect(restored.exitCode, restored.log).toBe(0);
      expect((await plain.compare(101, 901)).differences).toEqual([]);
    } finally {
      await plain.close();
    }
  });
});

test('A9, C7: a privileged container, with device nodes, is restored as an unprivileged one', async () => {
  const features = [...usualFeatures, 'devicesOutsideDev'] as const;
  await bench.add({ vmid: 102, idMap: privileged, features, files: 200 });
  const { exitCode, log, volids } = await bench.backUp([102]);
  expect(exitCode, log).toBe(0);
  const [volid = ''] = volids;
  expect((await bench.restore(volid, 904, { unprivileged: false })).exitCode).not.toBe(0);
  const restored = await bench.restore(volid, 905, { unprivileged: true });
  expect(restored.exitCode, restored.log).toBe(0);
  const comparison = await bench.compare(102, 905);
  console.log(formatComparison(comparison));
  expect(comparison.differences).toEqual([]);
  const reasons = comparison.notRestored.map(({ reason }) => reason);
  expect(reasons).toContain('device node outside ./dev, which mknod refuses in a container');
});

/** How Proxmox's directory example packs a container, without what vzdump excludes. */
const pack: Record<'tar' | 'sqfs', (file: string) => [program: string, ...args: string[]]> = {
  tar: (file) => [
    ...(['tar', ...pveTarFlags, '-cf', file, '--exclude=lost+found', '--anchored'] as const),
    ...['./tmp/?*', './var/tmp/?*', './var/run/?*.pid'].map((path) => `--exclude=${path}`),
    '.',
  ],
  sqfs: (file) => [
    ...(['mksquashfs', '.', file, '-quiet', '-no-progress', '-wildcards', '-e'] as const),
    ...['lost+found', 'tmp/*', 'tmp/.*', 'var/tmp/*', 'var/run/*.pid', 'var/run/sub/*.pid'],
  ],
};

test.each(['tar', 'sqfs'] as const)(
  'C7: an archive.%s of Proxmox’s directory example',
  async (format) => {
    const vmid = format === 'tar' ? 110 : 111;
    const features = [...usualFeatures, 'devicesOutsideDev' as const].filter(
      // mksquashfs reads its holes for a minute
      (feature) => format === 'tar' || feature !== 'hugeSparseFile',
    );
    await bench.add({ vmid, files: 100, features });
    const archive = join(bench.store, `${vmid}/lxc-1700000000`);
    await mkdir(archive, { recursive: true });
    await copyFile(bench.node.containerConfigPath(vmid), join(archive, 'guest.conf'));
    // Where the container's root may write.
    const open = await mkdtemp(join(tmpdir(), 'example-'));
    await chmod(open, 0o777);
    const file = join(open, `archive.${format}`);
    await bench.node.withRootfs(vmid, (cwd) =>
      withUserNamespace(mixedIdMap, async (enter) => {
        const [program, ...args] = enter(...pack[format](file));
        await execa(program, args, { cwd });
      }),
    );
    await execa('mv', [file, archive]);
    await rmdir(open);
    const newId = vmid + 800;
    const restored = await bench.restore(`vault:backup/${vmid}/lxc-1700000000`, newId);
    expect(restored.exitCode, restored.log).toBe(0);
    const { differences } = await bench.compare(vmid, newId);
    // squashfs knows no ACLs, whole seconds after 1970 and holes of whole blocks, and here no xattrs.
    const lost = [
      'mtime',
      'xattrs',
      'ACL',
      'default ACL',
      'capability',
      'holes',
      'allocated bytes',
    ];
    const left = format === 'tar' ? [] : lost;
    expect(differences.filter(({ attribute }) => !left.includes(attribute))).toEqual([]);
  },
);

test('A7: two containers and a VM in one job, all three restore', async () => {
  const vm = await startBench({
    vmid: 200,
    disks: [{ device: 'drive-scsi0', size: 512 * KiB, seed: 1 }],
  });
  try {
    const containers = new ContainerBench(vm.node);
    for (const vmid of [100, 300]) await containers.add({ vmid, files: 50, seed: vmid });
    const { exitCode, log, volids } = await containers.backUp([100, 200, 300]);
    expect(exitCode, log).toBe(0);
    expect(volids).toHaveLength(3);
    const [first = '', middle = '', last = ''] = volids;
    const sha256 = new Map([['drive-scsi0', await vm.vm.snapshotSha256('drive-scsi0')]]);
    expect((await vm.restore({ volid: middle, sha256 })).differing).toEqual([]);
    for (const [vmid, volid] of [
      [100, first],
      [300, last],
    ] as const) {
      const restored = await containers.restore(volid, vmid + 1);
      expect(restored.exitCode, restored.log).toBe(0);
      expect((await containers.compare(vmid, vmid + 1)).differences).toEqual([]);
    }
  } finally {
    await vm.close();
  }
});
