import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { asVmCalls, type NormalCall, normaliseCalls } from '../../fixtures/pve/normalise-calls.ts';
import { parseCalls } from '../../fixtures/pve/recorded-call.ts';
import { type Bench, MiB, startBench } from './support/bench.ts';
import { strayFiles } from './support/store-reader.ts';

const disks = ['drive-scsi0', 'drive-scsi1', 'drive-virtio3'].map((device, seed) => ({
  device,
  size: 4 * MiB,
  seed,
}));

let bench: Bench;

beforeAll(async () => {
  const firewall = Buffer.from('[OPTIONS]\n\nenable: 0\n');
  bench = await startBench({ vmid: 200, disks, firewall, storages: { mystore: {} } });
});

afterAll(() => bench.close());

beforeEach(() => bench.node.forgetCalls());

/** What a call looks like to PVE, without its arguments and its result. */
const shapesOf = (calls: readonly NormalCall[]) =>
  calls
    .filter(({ call }) => call !== 'storage.parse_volname')
    .map(({ args: _args, result: _result, ...shape }) => shape);

async function recorded(name: string): Promise<NormalCall[]> {
  const file = new URL(`../../fixtures/pve/recordings/${name}.jsonl`, import.meta.url);
  return normaliseCalls(parseCalls(await readFile(file, 'utf8')), '\0');
}

const actual = async () => normaliseCalls(await bench.node.calls(), bench.node.root);

/** The arguments of prune_backups that do not depend on the storage's type. */
const pruneArguments = (calls: readonly NormalCall[]) =>
  calls.filter(({ call }) => call === 'storage.prune_backups').map(({ args }) => args.slice(1));

test('B10, D9: vzdump sets notes, protects and prunes as in vzdump-notes-protected-prune', async () => {
  for (let each = 0; each < 3; each++) expect((await bench.backUp()).exitCode).toBe(0);
  await bench.node.forgetCalls();
  const options = { notes: '{{guestname}}', protected: true, pruneBackups: 'keep-last=2' };
  const { exitCode, log, volid } = await bench.backUp(options);
  expect(exitCode, log).toBe(0);
  expect(log).toContain('pruned 1 backup(s) not covered by keep-retention policy');
  const isCompared = ({ call }: { call: string }) =>
    !/^provider\.backup_vm(_query_incremental)?$/.test(call);
  const expected = asVmCalls(await recorded('vzdump-notes-protected-prune'));
  expect(shapesOf(await actual()).filter(isCompared)).toEqual(shapesOf(expected));
  expect(pruneArguments(await actual())).toEqual(pruneArguments(expected));
  const list = await bench.node.pvesmJson<object[]>(['list', 'mystore']);
  expect(list).toHaveLength(3);
  expect(list.at(-1)).toMatchObject({ volid, notes: 'guest200', protected: 1 });
  // within the job the sweep is left to its end
  expect(await strayFiles(bench.store, [200])).toEqual([]);
});

test('D9: pvesm prune-backups --dry-run as in pvesm-prune-dryrun', async () => {
  const args = ['prune-backups', 'mystore', '--keep-last', '3', '--dry-run', '1'];
  const { exitCode, all } = await bench.node.pvesm(args);
  expect(exitCode, all).toBe(0);
  const expected = await recorded('pvesm-prune-dryrun');
  expect(shapesOf(await actual())).toEqual(shapesOf(expected));
  expect(pruneArguments(await actual())).toEqual(pruneArguments(expected));
});
