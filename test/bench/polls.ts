import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import { HostProcess } from '../../fixtures/host/host-process.ts';
import { makeArchives } from '../providers/directory/many-archives.ts';
import { median, type Result, type Row, timed } from './measure.ts';

const rounds = 5;
const provider = 'dist/providers/bridge-dir';
/** Until directories no longer count as just changed. */
const settle = () => sleep(2500);

interface Times {
  /** In a new host that finds nothing cached. */
  first: number[];
  /** In a new host that finds what an earlier one left on disk. */
  next: number[];
  /** In a host that has listed before. */
  again: number[];
  status: number[];
}

/** The calls of one new host. Ends it, but leaves its directory. */
async function callHost(path: string, root: string, first: number[], times: Times): Promise<void> {
  const host = await HostProcess.open({ path }, { provider, root });
  const call = async (into: number[], method: string) => {
    into.push(1000 * (await timed(() => host.call(method))));
  };
  await host.call('status');
  await call(first, 'list_volumes');
  for (let round = 0; round < rounds; round++) {
    await call(times.again, 'list_volumes');
    await call(times.status, 'status');
  }
  // The file is written beside the answers.
  await sleep(500);
  host.child.kill('SIGKILL');
  await host.exit;
  host.disconnect();
}

async function measure(folder: string): Promise<Result[]> {
  const path = join(folder, 'store');
  await mkdir(path);
  makeArchives(path, 200, 50);
  await settle();
  const times: Times = { first: [], next: [], again: [], status: [] };
  const theirs = { list: [] as number[], status: [] as number[] };
  const files = ['-name', 'archive.json', '-o', '-name', 'notes'];
  for (let round = 0; round < rounds; round++) {
    const root = await mkdtemp(join(folder, 'node-'));
    await callHost(path, root, times.first, times);
    await callHost(path, root, times.next, times);
    const cat = () => execa('find', [path, '(', ...files, ')', '-exec', 'cat', '{}', '+']);
    theirs.list.push(1000 * (await timed(cat)));
    theirs.status.push(1000 * (await timed(() => execa('stat', ['-f', path]))));
  }
  const result = (row: string, times: number[], others: number[], most: number): Result => {
    const ours = median(times);
    const ratio = median(others) / ours;
    const target = `<= ${most} ms`;
    return { row, ours, theirs: median(others), unit: 'ms', ratio, target, met: ours <= most };
  };
  return [
    result('list 10,000 archives, the first time', times.first, theirs.list, 1000),
    result('list 10,000 archives, the next host', times.next, theirs.list, 1000),
    result('list 10,000 archives again', times.again, theirs.list, 100),
    result('status', times.status, theirs.status, 5),
  ];
}

export const pollRow: Row = {
  name: 'polls',
  opponent: 'find and cat of the same files, stat -f',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'bench-'));
    try {
      return await measure(folder);
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};
