import { chmod, chown, cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { PveNode } from '../../fixtures/pve/pve-node.ts';
import { hostPids, pathsBelow } from './support/leftovers.ts';
import { VendorInstall } from './support/vendor.ts';

describe('a host that misbehaves', () => {
  let directory: string;
  let node: PveNode;

  /** The host is a program in Perl whose fault stands in its provider's directory. */
  async function createNode(behaviour: string, program?: string): Promise<void> {
    directory = await mkdtemp(join(tmpdir(), 'hosts-'));
    await cp('dist/providers', directory, { recursive: true });
    await writeFile(join(directory, 'bridge-dir/behaviour'), behaviour);
    const host = program === undefined ? 'fixtures/hosts/misbehave.pl' : join(directory, 'host.pl');
    if (program !== undefined) await writeFile(host, program);
    node = await PveNode.create({ node: '/usr/bin/perl', host, providers: directory });
    await mkdir(join(node.root, 'store'));
    const path = join(node.root, 'store');
    await node.addStorage('vault', 'bridge-dir', { path, content: 'backup' });
    await node.addVm(100, 'memory: 32\nscsi0: local:100/vm-100-disk-0.raw,size=4M\n');
  }

  afterEach(async () => {
    for (const pid of await hostPids(node.root)) process.kill(pid, 'SIGKILL');
    await node.destroy();
    await rm(directory, { recursive: true });
  });

  const closes = '#!/usr/bin/perl\nclose(STDIN); close(STDOUT); sleep(5);\n';
  test.each([
    ['prints junk', 'junk', /sent something else than JSON-RPC|did not begin with a hello line/],
    ['prints JSON of another kind', 'array', /sent something else than JSON-RPC/],
    ['answers before it says hello', 'no-hello', /did not begin with a hello line/],
    ['speaks another protocol', 'protocol', /speaks protocol '2' instead of 1: reinstall/],
    ['exits at once', 'exit', /has ended unexpectedly/],
    ['dies in the middle of a line', 'die', /has ended unexpectedly/],
    ['closes its output', closes, /has ended unexpectedly/],
  ])('A12, B1: one that %s is one clear error, soon', async (_, behaviour, message) => {
    await createNode(behaviour, behaviour.startsWith('#!') ? behaviour : undefined);
    const store = await pathsBelow(join(node.root, 'store'));
    const start = Date.now();
    const backup = await node.vzdump([100], { storage: 'vault' });
    expect(Date.now() - start).toBeLessThan(8000);
    expect(backup.exitCode).toBe(255);
    const errors = backup.all?.split('\n').filter((line) => line !== '') ?? [];
    expect(errors, backup.all).toHaveLength(1);
    expect(errors[0]).toMatch(message);
    const list = await node.pvesm(['list', 'vault']);
    expect(list.exitCode).not.toBe(0);
    expect(list.all).toMatch(message);
    const status = await node.pvesmJson<Record<string, { active: number }>>(['status']);
    expect(status.vault?.active).toBe(0);
    expect(await pathsBelow(join(node.root, 'store'))).toEqual(store);
  });

  test.each([
    ['says nothing', 'silent', /has sent no hello line/],
    ['prints an endless line', 'endless', /sent an endless line/],
  ])(
    'A12: one that %s holds up a poll for 2 s, and a call not for ever',
    async (_, behaviour, message) => {
      await createNode(behaviour);
      const start = Date.now();
      const status = await node.pvesmJson<Record<string, { active: number }>>(['status']);
      expect(Date.now() - start).toBeLessThan(5000);
      expect(status.vault?.active).toBe(0);
      const list = await node.pvesm(['list', 'vault']);
      expect(list.exitCode).not.toBe(0);
      expect(list.all).toMatch(message);
      expect(list.all?.trim().split('\n')).toHaveLength(1);
    },
  );
});

describe('a provider.json that is wrong', () => {
  let vendor: VendorInstall;
  let node: PveNode;
  let manifest: Record<string, unknown>;

  beforeEach(async () => {
    vendor = await VendorInstall.create();
    manifest = JSON.parse(await readFile(vendor.manifest, 'utf8'));
    node = await PveNode.create(vendor.nodeOptions);
    for (const [storeid, type] of [
      ['vault', 'bridge-dir'],
      ['other', 'sample'],
    ] as const) {
      const path = join(node.root, storeid);
      await mkdir(path);
      await node.addStorage(storeid, type, { path, content: 'backup' });
    }
  });
  afterEach(async () => {
    await node.destroy();
    await vendor.remove();
  });

  const string = { type: 'string', description: 'Text.' };
  const changed = (more: object) => () =>
    writeFile(vendor.manifest, JSON.stringify({ ...manifest, ...more }));
  test.each<[string, () => Promise<unknown>, RegExp]>([
    ['another type', changed({ type: 'banana' }), /'type' is not 'sample'/],
    [
      'a property of no type of PVE’s',
      changed({ properties: { 'sample-fault': { type: 'object' } } }),
      /property 'sample-fault': its type is none of PVE's/,
    ],
    [
      'a property without the prefix',
      changed({ properties: { fault: string }, options: { fault: {} } }),
      /property 'fault': its name does not start with 'sample-'/,
    ],
    [
      'a property of PVE’s own',
      changed({ properties: { path: string }, options: { path: {} } }),
      /property 'path'/,
    ],
    ['no JSON', () => writeFile(vendor.manifest, 'type: sample'), /it is no JSON object/],
    ['nothing in it', () => writeFile(vendor.manifest, ''), /no JSON object|no plain file/],
    ['no file', () => rm(vendor.manifest), /cannot read '.*provider.json'/],
    ['another owner', () => chown(vendor.manifest, 65534, 0), /does not belong to root/],
    ['a mode for others', () => chmod(vendor.manifest, 0o666), /written to by others than root/],
  ])('D1, D2: with %s the node goes on, and its use says why', async (_, spoil, message) => {
    await spoil();
    const status = await node.pvesm(['status', '--json']);
    expect(status.exitCode, status.all).toBe(0);
    expect(JSON.parse(status.stdout ?? '')).toMatchObject({
      vault: { active: 1, type: 'bridge-dir' },
      other: { active: 0, type: 'sample' },
    });
    expect(await node.pvesmJson(['list', 'vault'])).toEqual([]);
    const backup = await node.vzdump([100], { storage: 'other' });
    expect(backup.exitCode).toBe(255);
    const lines = (backup.all ?? '').split('\n').filter((line) => line.startsWith('TASK ERROR'));
    expect(lines, backup.all).toHaveLength(1);
    expect(lines[0]).toMatch(message);
    expect(lines[0]).toContain("storage type 'sample' cannot be used, see ");
    const list = await node.pvesm(['list', 'other']);
    expect(list.exitCode).not.toBe(0);
    expect(list.all).toMatch(message);
  });
});
