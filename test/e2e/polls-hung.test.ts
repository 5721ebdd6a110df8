import { mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { HostProcess } from '../../fixtures/host/host-process.ts';
import { PveNode } from '../../fixtures/pve/pve-node.ts';
import { FuseStore } from './support/fuse-store.ts';
import { hostPids } from './support/leftovers.ts';
import { mostSeconds, Pvestatd } from './support/pvestatd.ts';

const provider = 'dist/providers/bridge-dir';
/** Once a store is known to hang, it holds up the others much less. */
const hungSeconds = 1;
const lastState = { active: 1, total: FuseStore.total, used: FuseStore.used };

/** Threads of a process that wait for a file system in user space. */
async function waitingThreads(pid: number): Promise<number> {
  const folder = `/proc/${pid}/task`;
  const stacks = (await readdir(folder)).map((id) => readFile(`${folder}/${id}/stack`, 'latin1'));
  return (await Promise.all(stacks)).filter((stack) => stack.includes('fuse')).length;
}

/** The host of a node that was started with this store. */
async function hostOf(node: PveNode, storeid: string): Promise<number> {
  const log = await readFile(join(node.root, `var/log/pve-backup-bridge/${storeid}.log`), 'utf8');
  const pids = await hostPids(node.root);
  const found = pids.filter((pid) => log.includes(`"pid":${pid},`));
  expect(found).toHaveLength(1);
  return found[0] ?? 0;
}

describe('storages of which one hangs', () => {
  let node: PveNode;
  let store: FuseStore;
  let pvestatd: Pvestatd;

  beforeEach(async () => {
    node = await PveNode.create();
    store = await FuseStore.mount(join(node.root, 'hung'));
    const vault = join(node.root, 'vault');
    await mkdir(vault);
    await node.addStorage('hung', 'bridge-dir', { path: store.path, content: 'backup' });
    await node.addStorage('vault', 'bridge-dir', { path: vault, content: 'backup' });
    pvestatd = new Pvestatd(node, { pingTimeout: 4 });
  });
  afterEach(async () => {
    store.answer();
    for (const pid of await hostPids(node.root)) process.kill(pid, 'SIGCONT');
    await pvestatd.end();
    await store.unmount();
    await node.destroy();
  });

  /** Polls a storage that hangs: the first time it costs a while, later hardly any. */
  async function pollHung(count: number, hung: object): Promise<void> {
    for (let number = 0; number < count; number++) {
      const { seconds, info } = await pvestatd.poll();
      expect(seconds).toBeLessThan(number === 0 ? mostSeconds : hungSeconds);
      expect(info).toMatchObject({ hung, vault: { active: 1 } });
    }
  }

  async function expectBack(): Promise<void> {
    await sleep(200);
    const { seconds, info } = await pvestatd.poll();
    expect(seconds).toBeLessThan(hungSeconds);
    expect(info).toMatchObject({ hung: lastState, vault: { active: 1 } });
  }

  test('A12: a store that does not answer: the last state, one thread waits, then it is back', async () => {
    await pvestatd.pollUntilActive();
    const hosts = await hostPids(node.root);
    store.hang();
    await pollHung(6, lastState);
    expect(await waitingThreads(await hostOf(node, 'hung'))).toBe(1);
    store.answer();
    await expectBack();
    expect(await waitingThreads(await hostOf(node, 'hung'))).toBe(0);
    expect(await hostPids(node.root)).toEqual(hosts);
  });

  test('A12: a store that never answered is inactive, then it comes up', async () => {
    store.hang();
    await pvestatd.poll(); // starts the hosts
    await pvestatd.poll();
    await pollHung(4, { active: 0 });
    store.answer();
    await pvestatd.pollUntilActive();
    await expectBack();
  });

  test('A12: a stopped host that goes on is back at once', async () => {
    await pvestatd.pollUntilActive();
    const pid = await hostOf(node, 'hung');
    process.kill(pid, 'SIGSTOP');
    await pollHung(3, lastState);
    process.kill(pid, 'SIGCONT');
    await expectBack();
    expect(await hostOf(node, 'hung')).toBe(pid);
  });

  test('A12: a host that stays stopped is replaced', async () => {
    await pvestatd.pollUntilActive();
    const [stopped, other] = [await hostOf(node, 'hung'), await hostOf(node, 'vault')];
    process.kill(stopped, 'SIGSTOP');
    await pollHung(3, lastState);
    for (let count = 0; (await hostPids(node.root)).includes(stopped); count++) {
      expect(count).toBeLessThan(20);
      const { seconds, info } = await pvestatd.poll();
      expect(seconds).toBeLessThan(hungSeconds);
      expect(info).toMatchObject({ vault: { active: 1 } });
      await sleep(500);
    }
    await pvestatd.pollUntilActive();
    expect(await hostOf(node, 'vault')).toBe(other);
  });
});

test('a host whose threads all wait for the store answers pings, and goes on where it was', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'hung-'));
  const store = await FuseStore.mount(join(folder, 'store'));
  const host = await HostProcess.open({ path: store.path }, { provider });
  try {
    await host.call('status');
    store.hang();
    const calls = ['check_connection', 'status', ...Array(8).fill('list_volumes')];
    const answers = Promise.all(calls.map((method) => host.call(method)));
    await sleep(500);
    expect(await waitingThreads(host.child.pid ?? 0)).toBe(4);
    for (let count = 0; count < 5; count++) {
      const start = performance.now();
      expect(await host.call('ping')).toMatchObject({ result: {} });
      expect(performance.now() - start).toBeLessThan(1000);
    }
    store.answer();
    for (const { error } of await answers) expect(error).toBeUndefined();
  } finally {
    store.answer();
    await host.destroy();
    await store.unmount();
    await rm(folder, { recursive: true });
  }
});
