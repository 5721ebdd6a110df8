import { randomBytes } from 'node:crypto';
import { expect } from 'vitest';
import type { PveNode, PveProgram } from '../../../fixtures/pve/pve-node.ts';
import type { VirtualMachine } from '../../../fixtures/qemu/virtual-machine.ts';
import { type Archive, type Backup, type Bench, KiB, MiB } from './bench.ts';
import { leftAfterQuiet } from './leftovers.ts';

/** What vzdump says once it knows what is dirty and begins to read. */
export const inData = /drive-scsi0: .* to back up/;

export interface Struck {
  readonly exitCode: number | undefined;
  readonly log: string;
  /** From the strike to the end of the program. */
  readonly seconds: number;
}

/** Strikes `delay` ms after the program has printed a text, and waits for its end. */
export async function strikeAt(
  program: PveProgram,
  marker: RegExp,
  strike: () => unknown,
  delay = 500,
): Promise<Struck> {
  let struckAt = 0;
  let seen = '';
  let timer: NodeJS.Timeout | undefined;
  let blow: Promise<unknown> = Promise.resolve();
  program.all?.on('data', (data: Buffer | string) => {
    seen += data;
    if (!marker.test(seen)) return;
    timer ??= setTimeout(() => {
      struckAt = Date.now();
      blow = (async () => strike())();
      blow.catch(() => {});
    }, delay);
  });
  const { exitCode, all = '' } = await program;
  clearTimeout(timer);
  await blow;
  expect(struckAt, `over before the strike: ${all}`).toBeGreaterThan(0);
  return { exitCode, log: all, seconds: (Date.now() - struckAt) / 1000 };
}

/** Writes to each part that a bitmap tells apart, so that the next backup reads the whole disk. */
export async function dirtyAll(vm: VirtualMachine, device: string, size: number): Promise<void> {
  for (let offset = 0; offset < size; offset += 4 * MiB) {
    await vm.write(device, offset, randomBytes(64 * KiB));
  }
}

/** The volids that PVE sees, in order. */
export async function listed(node: PveNode, storeid = 'vault'): Promise<string[]> {
  const list = await node.pvesmJson<{ volid: string }[]>(['list', storeid]);
  return list.map(({ volid }) => volid).sort();
}

/** Exactly these archives are listed, and each of them restores bit for bit. */
export async function expectArchives(bench: Bench, archives: readonly Archive[]): Promise<void> {
  expect(await listed(bench.node)).toEqual(archives.map(({ volid }) => volid).sort());
  for (const archive of archives) {
    const restore = await bench.restore(archive);
    expect(restore, restore.log).toMatchObject({ exitCode: 0, differing: [] });
  }
}

/** A backup that nobody disturbs, which restores bit for bit. */
export async function expectBackup(bench: Bench): Promise<Backup> {
  const backup = await bench.backUp();
  expect(backup.exitCode, backup.log).toBe(0);
  const restore = await bench.restore(backup);
  expect(restore, restore.log).toMatchObject({ exitCode: 0, differing: [] });
  return backup;
}

/** Within 10 s no process, mount or socket of the bridge is left. */
export async function expectQuiet(
  bench: Bench,
  expected: { pids?: readonly number[]; mounts?: readonly string[] } = {},
): Promise<void> {
  const pids = [bench.vm.pid, ...(expected.pids ?? [])];
  expect(await leftAfterQuiet(bench.node.root, { ...expected, pids })).toEqual([]);
}

/** The lines of a task log that tell of an error. */
export function errorLines(log: string): string[] {
  return log.split('\n').filter((line) => /^(?:ERROR|TASK ERROR): /.test(line));
}
