import { readdir, truncate, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { PveProgram } from '../../fixtures/pve/pve-node.ts';
import type { Tree } from '../../fixtures/rootfs/describe.ts';
import { ContainerBench } from './support/containers.ts';
import { strikeAt } from './support/faults.ts';
import { childrenOf, hostPids, leftAfterQuiet } from './support/leftovers.ts';

/** Some ten seconds for the tree. */
const slowly = { storage: 'vault', bwlimit: 256 } as const;
const begun = /using backup mechanism/;

let bench: ContainerBench;
let before: Tree;
let earlier: string;
let newId = 900;

beforeAll(async () => {
  bench = await ContainerBench.create();
  await bench.add({ vmid: 101, files: 600, features: ['hardLinks', 'acls'] });
  before = await bench.describe(101);
  const { exitCode, log, volids } = await bench.backUp([101]);
  expect(exitCode, log).toBe(0);
  earlier = volids[0] ?? '';
});
beforeEach(() => sleep(1000));
afterAll(() => bench.close());

async function expectRestores(volid: string): Promise<void> {
  newId++;
  const restored = await bench.restore(volid, newId);
  expect(restored.exitCode, restored.log).toBe(0);
  expect((await bench.compare(101, newId, { before })).differences).toEqual([]);
}

/** Nothing of the failed backup is left, and the earlier one is as it was. */
async function expectHarmless(): Promise<void> {
  expect(await leftAfterQuiet(bench.node.root)).toEqual([]);
  expect(await bench.list()).toEqual([earlier]);
  expect(await readdir(join(bench.store, '101'))).toHaveLength(1);
  await expectRestores(earlier);
}

/** Resolves in the middle of `backup_container`. */
async function whileReading(program: PveProgram): Promise<void> {
  const files = () => readdir(bench.store, { recursive: true });
  const tar = expect.stringMatching(/\.partial\/archive\.tar/);
  await expect.poll(files, { timeout: 20_000 }).toContainEqual(tar);
  await sleep(500);
  expect(program.exitCode).toBeNull();
}

describe('A10: a child of backup_container that ends without a result', () => {
  test.each(['kill', 'exit'] as const)('by %s: the backup has failed', async (how) => {
    const vzdump = bench.node.vzdump([101], { ...slowly, childFault: { how } });
    await whileReading(vzdump);
    await bench.node.triggerChildFault();
    const { exitCode, all } = await vzdump;
    expect(exitCode, all).not.toBe(0);
    expect(all).toContain('no archive is known to be written');
    await expectHarmless();
  });

  test('and the next container of the same job is backed up', async () => {
    await bench.add({ vmid: 102, files: 20, features: [] });
    const vzdump = bench.node.vzdump([101, 102], { ...slowly, childFault: { how: 'kill' } });
    await whileReading(vzdump);
    await bench.node.triggerChildFault();
    const { exitCode, all } = await vzdump;
    expect(exitCode, all).not.toBe(0);
    const others = (await bench.list()).filter((volid) => volid !== earlier);
    expect(others, all).toEqual([expect.stringMatching(/backup\/102\//)]);
    const restored = await bench.restore(others[0] ?? '', 890);
    expect(restored.exitCode, restored.log).toBe(0);
    expect((await bench.compare(102, 890)).differences).toEqual([]);
    await bench.node.pvesm(['free', others[0] ?? '']);
    await expectHarmless();
  });
});

test('A3: the API stops the task: PVE’s own words, and nothing is left', async () => {
  const vzdump = bench.node.vzdump([101], slowly);
  const stop = () => vzdump.pid && process.kill(-vzdump.pid, 'SIGTERM');
  const { exitCode, log, seconds } = await strikeAt(vzdump, begun, stop, 1500);
  expect(exitCode, log).not.toBe(0);
  expect(log).toMatch(/interrupted by (unexpected )?signal/);
  expect(seconds).toBeLessThan(5);
  await expectHarmless();
});

test.each(['host', 'tar'])(
  'the %s is killed: the backup fails, the next one works',
  async (who) => {
    const vzdump = bench.node.vzdump([101], slowly);
    await whileReading(vzdump);
    const [host = 0] = await hostPids(bench.node.root);
    const pids = who === 'host' ? [host] : await childrenOf(host);
    expect(pids).not.toEqual([0]);
    for (const pid of pids) process.kill(pid, 'SIGKILL');
    const { exitCode, all } = await vzdump;
    expect(exitCode, all).not.toBe(0);
    await expect.poll(() => leftAfterQuiet(bench.node.root)).toEqual([]);
    expect(await bench.list()).toEqual([earlier]);
    const next = await bench.backUp([101]);
    expect(next.exitCode, next.log).toBe(0);
    await expectRestores(next.volids[0] ?? '');
    await bench.node.pvesm(['free', next.volids[0] ?? '']);
    await expectHarmless();
  },
);

test('files that change, shrink or vanish meanwhile: a warning that names each, all else intact', async () => {
  const vzdump = bench.node.vzdump([101], { ...slowly, mode: 'stop' });
  const files = `/proc/${vzdump.pid}/root${bench.node.root}/mnt/vzsnap0/usr/share/files`;
  const touched = new Set<string>();
  const disturb = async () => {
    for (const directory of await readdir(files)) {
      for (const [index, file] of (await readdir(join(files, directory))).entries()) {
        const path = join(files, directory, file);
        if (index % 4 === 0) await unlink(path);
        else if (index % 4 === 1) await truncate(path, 1);
        else continue;
        touched.add(`usr/share/files/${directory}/${file}`).add(`usr/share/files/${directory}`);
      }
    }
  };
  const { exitCode, log } = await strikeAt(vzdump, begun, disturb, 2500);
  expect(exitCode, log).toBe(0);
  expect(log).toMatch(/WARN: .*usr\/share\/files\/\d\/file-\d+.*removed before we read it/);
  const [volid = ''] = (await bench.list()).filter((listed) => listed !== earlier);
  newId++;
  const restored = await bench.restore(volid, newId);
  expect(restored.exitCode, restored.log).toBe(0);
  const { differences } = await bench.compare(101, newId, { before });
  expect(differences.length).toBeGreaterThan(0);
  expect(differences.filter(({ name }) => !touched.has(name))).toEqual([]);
});
