import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { type NormalCall, normaliseCalls } from '../../fixtures/pve/normalise-calls.ts';
import { PveNode } from '../../fixtures/pve/pve-node.ts';
import { parseCalls } from '../../fixtures/pve/recorded-call.ts';
import { addSmallContainer } from '../fixtures/small-container.ts';

/** What a call looks like to PVE, without what its arguments and its result say of the storage type. */
type Shape = Omit<NormalCall, 'args' | 'result'> & { died: boolean };

const config = `hostname: ct100
rootfs: local:100/vm-100-disk-0.raw,size=32M
unprivileged: 1
`;

let node: PveNode;

beforeAll(async () => {
  node = await PveNode.create();
  const store = join(node.root, 'store');
  await mkdir(store);
  await node.addStorage('mystore', 'bridge-dir', { content: 'backup', path: store });
  await addSmallContainer(node, 100, { config, firewall: '[OPTIONS]\nenable: 0\n' });
});

afterAll(() => node.destroy());

beforeEach(() => node.forgetCalls());

/** Names are parsed by the plugins themselves, too; how often is their own business. */
const shapesOf = (calls: readonly NormalCall[]): Shape[] =>
  calls
    .filter(({ call }) => call !== 'storage.parse_volname')
    .map(({ args: _args, result, ...shape }) => ({ ...shape, died: result.startsWith('DIED') }));

async function recorded(name: string): Promise<Shape[]> {
  const file = new URL(`../../fixtures/pve/recordings/${name}.jsonl`, import.meta.url);
  return shapesOf(normaliseCalls(parseCalls(await readFile(file, 'utf8')), '\0'));
}

const actual = async () => shapesOf(normaliseCalls(await node.calls(), node.root));

test('A7 to A9, B8, B9: vzdump as in vzdump-container', async () => {
  const { exitCode, all } = await node.vzdump([100], { storage: 'mystore' });
  expect(exitCode, all).toBe(0);
  expect(await actual()).toEqual(await recorded('vzdump-container'));
});

test('C2: pct restore as in pct-restore-tar', async () => {
  const [archive] = await node.pvesmJson<{ volid: string }[]>(['list', 'mystore']);
  await node.forgetCalls();
  const { exitCode, all } = await node.pctRestore(archive?.volid ?? '', 300);
  expect(exitCode, all).toBe(0);
  expect(await actual()).toEqual(await recorded('pct-restore-tar'));
});

test('C2, C7: pct restore as in pct-restore-directory', async () => {
  const archive = join(node.root, 'store/100/lxc-1700000000');
  await mkdir(archive, { recursive: true });
  await writeFile(join(archive, 'guest.conf'), config);
  await writeFile(join(archive, 'firewall.conf'), '[OPTIONS]\nenable: 0\n');
  await node.withRootfs(100, (directory) =>
    execa('mksquashfs', [
      directory,
      join(archive, 'archive.sqfs'),
      '-all-root',
      '-quiet',
      '-no-progress',
    ]),
  );
  await node.forgetCalls();
  const volid = 'mystore:backup/100/lxc-1700000000';
  const { exitCode, all } = await node.pctRestore(volid, 301);
  expect(exitCode, all).toBe(0);
  expect(await actual()).toEqual(await recorded('pct-restore-directory'));
});
