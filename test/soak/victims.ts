import type { PveProgram } from '../../fixtures/pve/pve-node.ts';
import { childrenOf, hostPids } from '../e2e/support/leftovers.ts';

/** Sends a signal to some part of a running backup; false if that part is not there. */
export type Strike = (vzdump: PveProgram, root: string) => Promise<boolean>;

/** What is killed, and how, by what the log calls it. */
export const strikes: Readonly<Record<string, Strike>> = {
  'kill -9 of vzdump': async ({ pid }) => send(pid, 'SIGKILL'),
  "kill -9 of vzdump's group": async ({ pid }) => send(pid && -pid, 'SIGKILL'),
  'SIGTERM to vzdump': async ({ pid }) => send(pid, 'SIGTERM'),
  'SIGINT to vzdump': async ({ pid }) => send(pid, 'SIGINT'),
  'kill -9 of the host': async (_, root) => send((await hostPids(root))[0], 'SIGKILL'),
  'kill -9 of a child of the host': async (_, root) => {
    const [host] = await hostPids(root);
    const children = host === undefined ? [] : await childrenOf(host);
    return send(children[0], 'SIGKILL');
  },
};

/** False if there is no such process. */
export function send(pid: number | undefined, signal: NodeJS.Signals): boolean {
  if (pid === undefined) return false;
  try {
    return process.kill(pid, signal);
  } catch {
    return false;
  }
}
