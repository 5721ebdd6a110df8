import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Backup, type Bench, efiDisk, KiB, startBench } from './support/bench.ts';
import { guestConfig } from './support/guest.ts';

const program = '../../../test/e2e/support/provider-calls.pl';
const disks = [{ device: 'drive-scsi0', size: 64 * KiB, seed: 1 }, efiDisk];
const firewall = '[OPTIONS]\r\nenable: 1\n';

let bench: Bench;
let archive: Backup;

beforeAll(async () => {
  bench = await startBench({ disks, firewall: Buffer.from(firewall) });
  archive = await bench.backUp();
  expect(archive.exitCode, archive.log).toBe(0);
});
afterAll(() => bench.close());

type Call = readonly [method: string, ...args: unknown[]];
type Answer = { readonly result?: readonly unknown[]; readonly error?: string };

async function ask(calls: readonly Call[], taint: boolean): Promise<readonly Answer[]> {
  const run = bench.node.run(program, [], { taint });
  run.stdin.end(JSON.stringify({ storeid: 'vault', calls }));
  const { exitCode, stdout, stderr } = await run;
  expect([exitCode, stderr]).toEqual([0, '']);
  return JSON.parse(stdout) as Answer[];
}

/** By PVE's container code, which passes the storage ID as a further argument. */
describe.each([true, false])('the calls of a restore of a container (-T: %s)', (taint) => {
  test('C2: the storage ID makes no difference where it comes after the volname', async () => {
    const volname = archive.volid.replace('vault:', '');
    const methods = [
      'restore_get_mechanism',
      'archive_get_guest_config',
      'archive_get_firewall_config',
      'archive_get_guest_config',
    ];
    const forms: Call[][] = [[volname], [volname, 'vault']].map((args) =>
      // each in an object of its own
      methods.flatMap((method): Call[] => [['new'], [method, ...args]]),
    );
    const [short = [], long] = [await ask(forms[0] ?? [], taint), await ask(forms[1] ?? [], taint)];
    expect(long).toEqual(short);
    const config = expect.stringContaining(guestConfig(100, disks));
    expect(short).toEqual([
      { result: ['qemu-img', 'qemu'] },
      { result: [config] },
      { result: [firewall] },
      { result: [config] },
    ]);
  });

  test('C2: an archive that is gone is told in one line, with the storage ID too', async () => {
    const volname = 'backup/101/lxc-2001-01-01T00:00:00Z';
    const methods = [
      'restore_get_mechanism',
      'archive_get_guest_config',
      'archive_get_firewall_config',
    ];
    const calls = methods.map((method): Call => [method, volname, 'vault']);
    const answers = await ask([['new'], ...calls], taint);
    expect(answers).toHaveLength(3);
    for (const { error } of answers) {
      expect(error).toMatch(/^[^\n]*no archive 101\/lxc-2001-01-01T00:00:00Z[^\n]*\n$/);
    }
  });

  test('C1, C2: a VM is restored with or without the storage ID', async () => {
    const volname = archive.volid.replace('vault:', '');
    const answers = await ask(
      [
        ['new'],
        ['restore_vm_init', volname, 'vault'],
        ['restore_vm_volume_init', volname, 'drive-scsi0', {}],
        ['restore_vm_volume_cleanup', volname, 'drive-scsi0', {}],
        ['restore_vm_cleanup', volname, 'vault'],
      ],
      taint,
    );
    const sizes = { 'drive-scsi0': { size: 64 * KiB }, 'drive-efidisk0': { size: efiDisk.size } };
    expect(answers).toEqual([
      { result: [sizes] },
      { result: [{ 'qemu-img-path': expect.stringContaining(bench.node.root) }] },
      { result: [] },
      { result: [] },
    ]);
  });
});
