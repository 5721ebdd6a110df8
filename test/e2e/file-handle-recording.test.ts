import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { type NormalCall, normaliseCalls } from '../../fixtures/pve/normalise-calls.ts';
import { parseCalls } from '../../fixtures/pve/recorded-call.ts';
import { type Bench, MiB, startBench } from './support/bench.ts';

/** The guest, the disks and the storage of the recording; nothing is in them. */
const disks = [
  { device: 'drive-scsi0', size: 1024 * MiB },
  { device: 'drive-scsi1', size: 200 * MiB },
  { device: 'drive-virtio3', size: 4 * MiB },
];
const config = `#VM descr %C3%BCmlaut
args: -set device.scsi0.share-rw=on
boot: order=scsi0
cores: 1
cpu: host
memory: 128
name: vm200
ostype: l26
scsi0: local:200/vm-200-disk-0.raw,size=1G
scsi1: local:200/vm-200-disk-1.qcow2,size=200M
scsi2: local:200/vm-200-disk-2.raw,backup=0,size=10M
scsihw: virtio-scsi-pci
smbios1: uuid=0f8a1a4e-5a1b-4f0e-9b57-3a1f6f1b6c1d
virtio3: local:200/vm-200-disk-3.raw,size=4M
`;
const firewall = Buffer.from('[OPTIONS]\n\nenable: 0\n# grüße\n\n');

let bench: Bench;
let recorded: NormalCall[];

beforeAll(async () => {
  const storages = { ours: { 'bridge-dir-mechanism': 'file-handle' } };
  const guest = { vmid: 200, disks, config: Buffer.from(config), firewall };
  bench = await startBench({ ...guest, storages });
  const store = join(bench.node.root, 'mnt/store');
  await mkdir(store, { recursive: true });
  await bench.node.addStorage('mystore', 'probe', {
    content: 'backup',
    'probe-dir': store,
    'probe-flag': 1,
    'probe-num': 9,
    'probe-vm-mech': 'file-handle',
    'probe-ct-restore': 'tar',
  });
  const name = '../../fixtures/pve/recordings/vzdump-vm-file-handle.jsonl';
  const file = new URL(name, import.meta.url);
  recorded = withoutNumbers(normaliseCalls(parseCalls(await readFile(file, 'utf8')), '\0'));
});
afterAll(() => bench.close());

beforeEach(() => bench.node.forgetCalls());

/** Numbers of descriptors and of the process. */
function withoutNumbers(calls: readonly NormalCall[]): NormalCall[] {
  const text = (value: string) =>
    value.replaceAll(/\(fd=\d+ -> /g, '(fd=N -> ').replaceAll(/(drive-\w+)\.\d+\//g, '$1.PID/');
  return calls.map((call) => ({ ...call, args: call.args.map(text) }));
}

/** The calls of an incremental backup: the first one makes the bitmaps. */
async function callsOf(storage: string): Promise<NormalCall[]> {
  for (const _ of ['new', 'reuse']) {
    await bench.node.forgetCalls();
    const { exitCode, log } = await bench.backUp({ storage });
    expect(exitCode, log).toBe(0);
  }
  return withoutNumbers(normaliseCalls(await bench.node.calls(), bench.node.root));
}

test('B7: calls as in vzdump-vm-file-handle', async () => {
  expect(await callsOf('mystore')).toEqual(recorded);
});

test('B1 to B14: and of our own provider', async () => {
  const shapesOf = (calls: readonly NormalCall[]) =>
    calls
      .filter(({ call }) => call !== 'storage.parse_volname')
      .map(({ args: _args, result, ...shape }) => ({ ...shape, died: result.startsWith('DIED') }));
  const calls = await callsOf('ours');
  expect(shapesOf(calls)).toEqual(shapesOf(recorded));
  const volumesOf = (all: readonly NormalCall[]) =>
    all.find(({ call }) => call === 'provider.backup_vm')?.args[2];
  expect(volumesOf(calls)).toBe(volumesOf(recorded));
});
