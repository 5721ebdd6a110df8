import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { asVmCalls, type NormalCall, normaliseCalls } from '../../fixtures/pve/normalise-calls.ts';
import { parseCalls } from '../../fixtures/pve/recorded-call.ts';
import { type Backup, type Bench, MiB, startBench } from './support/bench.ts';

/** The disks, the guest and the storage of the recordings. */
const disks = ['drive-scsi0', 'drive-scsi1', 'drive-virtio3'].map((device, seed) => ({
  device,
  size: 4 * MiB,
  seed,
}));
const firewall = Buffer.from('[OPTIONS]\n\nenable: 0\n');

let bench: Bench;
let backup: Backup;

beforeAll(async () => {
  bench = await startBench({ vmid: 200, disks, firewall, storages: { mystore: {} } });
  backup = await bench.backUp();
  expect(backup.exitCode, backup.log).toBe(0);
});

afterAll(() => bench.close());

beforeEach(() => bench.node.forgetCalls());

/** What a call looks like to PVE, without what its arguments and its result say of the storage type. */
type Shape = Omit<NormalCall, 'args' | 'result'> & { died: boolean };

/** Names are parsed by the plugins themselves, too; how often is their own business. */
const shapesOf = (calls: readonly NormalCall[]): Shape[] =>
  calls
    .filter(({ call }) => call !== 'storage.parse_volname')
    .map(({ args: _args, result, ...shape }) => ({ ...shape, died: result.startsWith('DIED') }));

async function recording(name: string): Promise<NormalCall[]> {
  const file = new URL(`../../fixtures/pve/recordings/${name}.jsonl`, import.meta.url);
  return normaliseCalls(parseCalls(await readFile(file, 'utf8')), '\0');
}

const recorded = async (name: string) => shapesOf(await recording(name));
const actual = async () =>
  shapesOf(normaliseCalls(await bench.node.calls(), bench.node.root)).filter(
    // the shim asks for the protection itself before it removes
    ({ call, caller }) =>
      !(call === 'storage.get_volume_attribute' && caller === 'PVE::Storage::__ANON__'),
  );

test.each(['vzdump-vm-nbd', 'vzdump-vm-nbd-reuse'])('B1 to B14: vzdump as in %s', async (name) => {
  const { exitCode, log } = await bench.backUp();
  expect(exitCode, log).toBe(0);
  expect(await actual()).toEqual(await recorded(name));
});

test('B2, B3, B5, B11, B17: the arguments are of the kinds that were recorded', async () => {
  const { exitCode, log } = await bench.backUp();
  expect(exitCode, log).toBe(0);
  const calls = normaliseCalls(await bench.node.calls(), bench.node.root);
  // PV|TAINTED(text) is a kind and a value
  const kinds = (all: readonly NormalCall[], method: string) =>
    all
      .filter(({ call }) => call === `provider.${method}`)
      .map(({ args }) => args.map((arg) => arg.replaceAll(/\([^)]*\)/g, '')));
  const expected = await recording('vzdump-vm-nbd-reuse');
  for (const method of ['job_init', 'backup_init', 'backup_get_mechanism', 'backup_cleanup']) {
    expect(kinds(calls, method)).toEqual(kinds(expected, method));
    expect(kinds(expected, method)).toHaveLength(1);
  }
});

test('B12: a guest that is unknown', async () => {
  const { exitCode, all } = await bench.node.vzdump([999], { storage: 'mystore' });
  expect(exitCode, all).toBe(255);
  expect(await actual()).toEqual(await recorded('vzdump-unknown-guest'));
});

test('A3: SIGTERM in the middle of backup_vm', async () => {
  await bench.vm.write('drive-scsi0', 0, { pattern: 1, length: 4 * MiB });
  await bench.nextSecond();
  const job = bench.node.vzdump([200], { storage: 'mystore', bwlimit: 256 });
  job.stdout.on('data', (text: Buffer) => {
    if (text.includes('drive-virtio3: incremental')) job.kill('SIGTERM');
  });
  const { exitCode, all = '' } = await job;
  bench.archivesIn(all);
  expect(exitCode, all).toBe(255);
  expect(await actual()).toEqual(await recorded('vzdump-vm-terminated'));
});

test('B10: notes and protection', async () => {
  const { exitCode, log } = await bench.backUp({ notes: '{{guestname}}', protected: true });
  expect(exitCode, log).toBe(0);
  const isCompared = ({ call }: Shape) => !/^provider\.backup_vm(_query_incremental)?$/.test(call);
  const expected = shapesOf(asVmCalls(await recording('vzdump-notes-protected-prune')));
  const last = expected.findLastIndex(({ call }) => call === 'storage.update_volume_attribute');
  // the pruning that was recorded as well comes next
  const withoutPrune = expected.filter(
    ({ call }, index) => index <= last || call.startsWith('provider.'),
  );
  expect((await actual()).filter(isCompared)).toEqual(withoutPrune);
});

test('A5, C1: qmrestore', async () => {
  const restore = await bench.restore(backup);
  expect(restore, restore.log).toMatchObject({ exitCode: 0, differing: [] });
  expect(await actual()).toEqual(await recorded('qmrestore'));
});

test('C1: qmrestore of what is not there', async () => {
  const gone = { ...backup, volid: 'mystore:backup/200/qemu-2001-01-01T00:00:00Z' };
  const { exitCode, log } = await bench.restore(gone);
  expect(exitCode, log).toBe(255);
  expect(log).toMatch(/^TASK ERROR: .*200\/qemu-2001-01-01T00:00:00Z/m);
});

test('A12, D4: pvesm status', async () => {
  const { exitCode, all } = await bench.node.pvesm(['status']);
  expect(exitCode, all).toBe(0);
  // two storages were recorded
  expect(await actual()).toEqual((await recorded('pvesm-status')).slice(0, 3));
});

test('A11: pvesm extractconfig', async () => {
  await bench.node.extractConfig(backup.volid);
  expect(await actual()).toEqual(await recorded('pvesm-extractconfig'));
});

test.each([
  ['api-status', ['status', 'mystore']],
  ['api-list', ['list', 'mystore']],
  ['api-show', ['show', 'VOLID']],
  ['api-notes', ['notes', 'VOLID', 'Grüße']],
  ['api-protect', ['protected', 'VOLID', '1']],
  ['api-unprotect', ['protected', 'VOLID', '0']],
  ['api-extractconfig', ['extractconfig', 'VOLID']],
  ['api-delete', ['delete', 'VOLID']],
])('A1, D5 to D8: %s', async (name, args) => {
  const { exitCode, all } = await bench.node.pvedaemonCall(
    args.map((arg) => arg.replace('VOLID', backup.volid)),
  );
  expect(exitCode, all).toBe(0);
  expect(await actual()).toEqual(await recorded(name));
});
