import { cp, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { type NormalCall, normaliseCalls } from '../../fixtures/pve/normalise-calls.ts';
import { PveNode } from '../../fixtures/pve/pve-node.ts';
import { parseCalls } from '../../fixtures/pve/recorded-call.ts';

const plugin = `package PVE::Storage::Custom::KeyedPlugin;
use v5.36;
use base qw(PVE::BackupBridge::StoragePlugin);
sub type { return 'keyed' }
1;
`;

let install: string;
let node: PveNode;
let store: string;

beforeAll(async () => {
  install = await mkdtemp(join(tmpdir(), 'keyed-'));
  await mkdir(join(install, 'perl5/PVE/Storage/Custom'), { recursive: true });
  await writeFile(join(install, 'perl5/PVE/Storage/Custom/KeyedPlugin.pm'), plugin);
  await cp('dist/providers', join(install, 'providers'), { recursive: true });
  await cp('fixtures/providers/keyed', join(install, 'providers/keyed'), { recursive: true });
});
afterAll(() => rm(install, { recursive: true }));
afterEach(() => node.destroy());

async function createNode(apiver = 15): Promise<void> {
  node = await PveNode.create({
    apiver,
    libraries: [join(install, 'perl5')],
    providers: join(install, 'providers'),
  });
  store = join(node.root, 'store');
  await mkdir(store);
  await writeFile(join(store, 'token'), 'grün ☃');
}

const addArguments = () => ['add', 'keyed', 'vault', '--path', store, '--content', 'backup'];

async function pvesm(args: readonly string[], taint = false): Promise<string> {
  const { exitCode, all = '' } = await node.pvesm(args, { taint });
  expect(exitCode, all).toBe(0);
  return all;
}

const refused = async (args: readonly string[]): Promise<string> => {
  const { exitCode, all = '' } = await node.pvesm(args);
  expect(exitCode, all).not.toBe(0);
  return all;
};

/** The secrets that the node keeps, by file. */
async function secrets(): Promise<Record<string, string>> {
  const directory = join(node.root, 'etc/pve/priv/storage');
  const kept: Record<string, string> = {};
  for (const name of await readdir(directory)) {
    expect((await stat(join(directory, name))).mode & 0o777, name).toBe(0o600);
    kept[name] = await readFile(join(directory, name), 'utf8');
  }
  return kept;
}

const storageCfg = () => readFile(join(node.root, 'etc/pve/storage.cfg'), 'utf8').catch(() => '');
const total = async () =>
  (await node.pvesmJson<{ vault: { total: number } }>(['status'])).vault.total;

/** What PVE did, without what the arguments say of the storage type. */
const shapes = (calls: readonly NormalCall[]) =>
  calls.map(({ args, result, ...shape }) => ({
    ...shape,
    arguments: args.length,
    died: result.startsWith('DIED'),
  }));

async function recorded(name: string) {
  const file = new URL(`../../fixtures/pve/recordings/${name}.jsonl`, import.meta.url);
  return shapes(normaliseCalls(parseCalls(await readFile(file, 'utf8')), '\0'));
}

describe.each([false, true])('A1: taint %s', (taint) => {
  test('D3: hooks are called as recorded, and secrets go their own way', async () => {
    await createNode();
    const steps = [
      {
        name: 'pvesm-add',
        args: [...addArguments(), '--keyed-token', 'grün ☃'],
        files: { 'vault.keyed-token': 'grün ☃\n' },
        total: 1000,
      },
      {
        name: 'pvesm-set',
        args: ['set', 'vault', '--keyed-key', '12345', '--keyed-delay', '0'],
        files: { 'vault.keyed-token': 'grün ☃\n', 'vault.keyed-key': '12345\n' },
        total: 5,
      },
      {
        name: 'pvesm-set-delete',
        args: ['set', 'vault', '--delete', 'keyed-key,keyed-delay'],
        files: { 'vault.keyed-token': 'grün ☃\n' },
        total: 1000,
      },
    ];
    for (const { name, args, files, total: size } of steps) {
      await node.forgetCalls();
      await pvesm(args, taint);
      const expected = (await recorded(name)).map((call) => ({ ...call, taint: Number(taint) }));
      expect(shapes(normaliseCalls(await node.calls(), node.root)), name).toEqual(expected);
      expect(await secrets(), name).toEqual(files);
      expect(await storageCfg(), name).not.toMatch(/token|key /);
      expect(await total(), name).toBe(size);
    }
    expect(await readdir(store)).toContain('ready');
    await node.forgetCalls();
    await pvesm(['remove', 'vault'], taint);
    const expected = (await recorded('pvesm-remove')).map((call) => ({
      ...call,
      taint: Number(taint),
    }));
    expect(shapes(normaliseCalls(await node.calls(), node.root))).toEqual(expected);
    expect(await secrets()).toEqual({});
    expect(await storageCfg()).toBe('');
  });
});

describe.each([11, 12, 13, 14, 15])('D1: API version %i', (apiver) => {
  test('D3: a storage is added, changed and removed', async () => {
    await createNode(apiver);
    const output = await pvesm([...addArguments(), '--keyed-token', 'grün ☃']);
    expect(output).toBe('the store is ready');
    await node.forgetCalls();
    await pvesm(['set', 'vault', '--keyed-key', '12345']);
    const hook = apiver < 13 ? 'on_update_hook' : 'on_update_hook_full';
    expect((await node.calls()).map(({ call }) => call)).toEqual([`storage.${hook}`]);
    expect(await total()).toBe(5);
    await pvesm(['set', 'vault', '--delete', 'keyed-key']);
    expect(await total()).toBe(1000);
    await pvesm(['remove', 'vault']);
    expect([await secrets(), await storageCfg()]).toEqual([{}, '']);
  });
});

describe('D1: API versions that were not tested', () => {
  test('a newer node is told the newest that was, and warns', async () => {
    await createNode(99);
    const add = [...addArguments(), '--keyed-token', 'grün ☃', '--apiage', '90'];
    const warnings = (await pvesm(add)).trimEnd().split('\n');
    expect(warnings.pop()).toBe('the store is ready');
    for (const line of warnings) {
      expect(line).toMatch(/^Plugin ".*" is implementing an older storage API, an upgrade is rec/);
    }
    expect(await total99()).toBe(1000);
  });

  const total99 = async () => {
    const { exitCode, stdout } = await node.pvesm(['status', '--json', '--apiage', '90']);
    expect(exitCode).toBe(0);
    return (JSON.parse(stdout) as { vault: { total: number } }).vault.total;
  };

  test.each([
    { apiver: 10, options: [], reason: 'implements an API version newer than current (11 > 10)' },
    { apiver: 99, options: ['--apiage', '2'], reason: 'API version too old, please update' },
  ])('a node with $apiver $options refuses the plugin', async ({ apiver, options, reason }) => {
    await createNode(apiver);
    const output = await refused([...addArguments(), '--keyed-token', 'x', ...options]);
    expect(output).toContain(
      `Error loading storage plugin "PVE::Storage::Custom::KeyedPlugin": ${reason}`,
    );
    // the other storages are still there
    expect((await node.pvesm(['status', ...options])).exitCode).toBe(0);
  });
});

describe('D3: what fails when a storage is added leaves nothing', () => {
  const cases = [
    {
      name: 'a secret is missing',
      options: [],
      reason: "create storage failed: storage 'vault' needs a value for 'keyed-token'",
    },
    {
      name: 'the store refuses',
      options: ['--keyed-token', 'wrong'],
      reason: 'create storage failed: the store does not know this token',
    },
    {
      name: 'it cannot be activated',
      options: ['--keyed-token', 'grün ☃', '--keyed-offline', '1'],
      reason:
        "the store is ready\ncreate storage failed: connection check for storage 'vault' failed - the store is offline",
    },
  ];
  test.each(cases)('$name', async ({ options, reason }) => {
    await createNode();
    expect((await refused([...addArguments(), ...options])).trim()).toBe(reason.trim());
    expect([await secrets(), await storageCfg()]).toEqual([{}, '']);
  });

  test('a storage that is there keeps what it needs', async () => {
    await createNode();
    await pvesm([...addArguments(), '--keyed-token', 'grün ☃']);
    const before = await storageCfg();
    const output = await refused(['set', 'vault', '--delete', 'keyed-token']);
    expect(output).toBe("update storage failed: storage 'vault' needs a value for 'keyed-token'");
    expect(await secrets()).toEqual({ 'vault.keyed-token': 'grün ☃\n' });
    expect(await storageCfg()).toBe(before);
  });
});

test('D3: a store that answers slowly can be added, though no poll waits for it', async () => {
  await createNode();
  await pvesm([...addArguments(), '--keyed-token', 'grün ☃', '--keyed-delay', '3']);
  const start = Date.now();
  const status = await node.pvesmJson<{ vault: { active: number } }>(['status']);
  expect(status.vault.active).toBe(0);
  expect(Date.now() - start).toBeLessThan(4000);
});
