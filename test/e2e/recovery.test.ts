import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { fillMixed, sha256Of } from '../../fixtures/qemu/mixed-data.ts';
import { compareTrees } from '../../fixtures/rootfs/compare.ts';
import { describeTree } from '../../fixtures/rootfs/describe.ts';
import { privileged } from '../../fixtures/rootfs/id-map.ts';
import { type Bench, efiDisk, MiB, startBench } from './support/bench.ts';
import { ContainerBench } from './support/containers.ts';

const script = fileURLToPath(
  new URL('../../fixtures/providers/directory-recovery.sh', import.meta.url),
);
const needed = 'sh sed od tr cut head cat brotli'.split(' ');
const scsi0 = { device: 'drive-scsi0', size: 18 * MiB, seed: 1 };

let bench: Bench;

beforeAll(async () => {
  bench = await startBench({ disks: [scsi0, efiDisk] });
});

afterAll(() => bench.close());

test('the disks of a backup are rebuilt by a shell, without Node', async () => {
  await bench.vm.write('drive-scsi0', 8 * MiB, { pattern: 0, length: 4 * MiB });
  expect((await bench.backUp()).exitCode).toBe(0);
  await bench.vm.write('drive-scsi0', 13 * MiB, { pattern: 0x21, length: MiB });
  const backup = await bench.backUp();
  expect(backup.exitCode, backup.log).toBe(0);

  const bin = join(bench.node.root, 'bin');
  await mkdir(bin);
  for (const program of needed) {
    const { stdout } = await execa('sh', ['-c', `command -v ${program}`]);
    await symlink(stdout, join(bin, program));
  }
  const options = { env: { PATH: bin }, extendEnv: false };
  await expect(execa('/bin/sh', ['-c', 'node --version'], options)).rejects.toThrow(/not found/);
  const name = backup.volid.replace('vault:backup/', '');
  for (const [device, expected] of backup.sha256) {
    const file = join(bench.node.root, `${device}.recovered`);
    const { stderr } = await execa('/bin/sh', [script, bench.store, name, device], {
      ...options,
      stdout: { file },
    });
    expect(stderr).toBe('');
    expect(await sha256Of(file)).toBe(expected);
  }
});

test('archives of Proxmox’s directory example are listed and restored', async () => {
  const { node, store } = bench;
  const config = 'name: old\nscsi0: local:300/vm-300-disk-0.raw,size=16M\n';
  const map = '#qmdump#map:scsi0:drive-scsi0:local:raw:\n';
  const raw = join(node.root, 'example.raw');
  const archives: { volid: string; sha256: Map<string, string> }[] = [];
  let backing: string[] = [];
  for (const time of [1_700_000_000, 1_700_000_100, 1_700_000_200]) {
    const directory = join(store, `300/qemu-${time}`);
    await mkdir(directory, { recursive: true });
    await writeFile(join(directory, 'guest.conf'), config + map);
    const image = join(directory, 'drive-scsi0.qcow2');
    await execa('qemu-img', ['create', '-q', '-f', 'qcow2', '-u', ...backing, image, '16M']);
    const offset = (time % 1000) * 0.05 * MiB;
    const content = join(node.root, `${time}.bin`);
    await fillMixed(content, 6 * MiB, time);
    const write = `write -q -s ${content} ${offset} ${6 * MiB}`;
    await execa('qemu-io', ['-f', 'qcow2', '-c', write, image]);
    await execa('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', image, raw]);
    const volid = `vault:backup/300/qemu-${time}`;
    archives.push({ volid, sha256: new Map([['drive-scsi0', await sha256Of(raw)]]) });
    backing = ['-F', 'qcow2', '-b', `../qemu-${time}/drive-scsi0.qcow2`];
  }
  const digests = archives.map(({ sha256 }) => sha256.get('drive-scsi0'));
  expect(new Set(digests).size).toBe(3);

  const list = await node.pvesmJson<object[]>(['list', 'vault', '--vmid', '300']);
  expect(list).toMatchObject(
    archives.map(({ volid }) => ({
      volid,
      subtype: 'qemu',
      ctime: Number(volid.slice(-10)),
    })),
  );
  for (const { volid, sha256 } of archives) {
    const restore = await bench.restore({ volid, sha256 });
    expect(restore, restore.log).toMatchObject({ exitCode: 0, differing: [] });
    expect(Buffer.from(await node.extractConfig(volid)).toString()).toBe(config + map);
  }
});

test('the lines of the README unpack a container with tar and zstd', async () => {
  const containers = await ContainerBench.create();
  try {
    await containers.add({ vmid: 101, idMap: privileged, files: 50 });
    const { exitCode, log, volids } = await containers.backUp([101]);
    expect(exitCode, log).toBe(0);
    const [name = ''] = volids.map((volid) => volid.replace('vault:backup/', ''));
    const readme = await readFile(new URL('../../README.md', import.meta.url), 'utf8');
    const [, lines = ''] = /```sh\n(cd [^`]*zstd -dc[^`]*)```/.exec(readme) ?? [];
    const target = await mkdtemp(join(tmpdir(), 'recovered-'));
    const command = lines
      .replace('/mnt/vault/101/lxc-2026-11-23T10:06:42Z', join(containers.store, name))
      .replace('/mnt/rootfs', target);
    expect(command).toContain(target);
    await execa('bash', ['-e', '-o', 'pipefail', '-c', command]);
    const before = await containers.describe(101);
    const after = await describeTree(target, privileged);
    const excludes = ['/tmp/?*', '/var/tmp/?*', '/var/run/?*.pid', '/dev', '/srv'];
    const { differences } = compareTrees(before, after, { excludes: [...excludes] });
    await rm(target, { recursive: true });
    expect(differences.filter(({ name: entry }) => !/^(dev|srv)/.test(entry))).toEqual([]);
  } finally {
    await containers.close();
  }
});
