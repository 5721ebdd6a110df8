import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { PveProgram } from '../../fixtures/pve/pve-node.ts';
import { childrenOf, hostPids } from '../e2e/support/leftovers.ts';
import { send } from './victims.ts';

interface Moment {
  readonly root: string;
  readonly store: string;
  readonly random: () => number;
  readonly isOver: () => boolean;
}

/** Kills some part; the processes that may outlive PVE's own, or undefined if that part is not there. */
type Strike = (program: PveProgram, root: string) => Promise<number[] | undefined>;

/** Stops a program and all that it has forked, so that none escapes; the youngest come last. */
async function freeze({ pid }: PveProgram): Promise<number[]> {
  const frozen: number[] = [];
  for (let next = pid === undefined ? [] : [pid]; next.length > 0; ) {
    for (const each of next) if (send(each, 'SIGSTOP')) frozen.push(each);
    next = (await Promise.all(next.map(childrenOf))).flat();
  }
  return frozen;
}

/** A strike at some of PVE's processes, of which the first is the program. */
const atPve =
  (kill: (pids: readonly number[]) => boolean): Strike =>
  async (program) => {
    const pids = await freeze(program);
    const struck = kill(pids);
    for (const pid of pids) send(pid, 'SIGCONT');
    return struck ? pids : undefined;
  };

/** A strike at the host that was started last. */
const atHost =
  (kill: (host: number) => Promise<boolean>): Strike =>
  async (_, root) => {
    const host = (await hostPids(root)).pop();
    return host !== undefined && (await kill(host)) ? [] : undefined;
  };

async function groupOf(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'latin1');
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[2]);
}

/** What is killed of a removal, by what the log calls it. */
export const removalStrikes: Readonly<Record<string, Strike>> = {
  'kill -9 of the host': atHost(async (host) => send(host, 'SIGKILL')),
  "kill -9 of the host's group": atHost(async (host) => send(-(await groupOf(host)), 'SIGKILL')),
  'kill -9 of a child of the host': atHost(async (host) =>
    send((await childrenOf(host))[0], 'SIGKILL'),
  ),
  'kill -9 of PVE': atPve(([program]) => send(program, 'SIGKILL')),
  'kill -9 of the worker': atPve(([, ...workers]) => send(workers.pop(), 'SIGKILL')),
  'kill -9 of everything': async (program, root) => {
    for (const host of await hostPids(root)) send(host, 'SIGKILL');
    const pids = await freeze(program);
    const struck = pids.map((pid) => send(pid, 'SIGKILL'));
    for (const host of await hostPids(root)) send(host, 'SIGKILL');
    return struck.some(Boolean) ? pids : undefined;
  },
};

/** When, by what the log calls it. */
export const removalMoments: Readonly<Record<string, (moment: Moment) => Promise<void>>> = {
  'some time after the start': ({ random }) => sleep(random() * 1500),
  'once there is a host': async ({ root, random, isOver }) => {
    while (!isOver() && (await hostPids(root)).length === 0) await sleep(5);
    await sleep(random() * 600);
  },
  'once an archive is hidden': async ({ store, random, isOver }) => {
    while (!isOver() && !(await hasHidden(store))) await sleep(1);
    await sleep(random() * 40);
  },
  'once a sweep has begun': async ({ store, random, isOver }) => {
    const directory = join(store, '.pve-backup-bridge');
    while (!isOver() && !(await readdir(directory)).includes('sweep-begun')) await sleep(1);
    await sleep(random() * 10);
  },
};

async function hasHidden(store: string): Promise<boolean> {
  const guests = (await readdir(store)).filter((name) => /^\d+$/.test(name));
  const names = await Promise.all(guests.map((guest) => readdir(join(store, guest))));
  return names.flat().some((name) => name.endsWith('.removed'));
}
