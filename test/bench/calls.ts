import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { execa } from 'execa';
import { HostProcess } from '../../fixtures/host/host-process.ts';
import { inTurn, type Row, timed } from './measure.ts';

const rounds = 7;
const bareNode = () => timed(() => execa(process.execPath, ['-e', '0']));

/** The median of many calls, measured in the Perl process that makes them. */
async function callThroughShim(): Promise<number> {
  const root = await mkdtemp(join(tmpdir(), 'bench-'));
  try {
    const script = resolve('test/bench/call.pl');
    const include = ['-Iperl', '-Ifixtures/pve/lib'].map((flag) =>
      flag.replace('-I', `-I${resolve()}/`),
    );
    const { stdout } = await execa('perl', [...include, script, root, process.execPath, resolve()]);
    return Number(stdout);
  } finally {
    await rm(root, { recursive: true, force: true });
  }
}

export const callRow: Row = {
  name: 'call',
  opponent: 'a Node program started for each call',
  async run() {
    const { ours, theirs } = await inTurn(
      rounds,
      callThroughShim,
      async () => 1000 * (await bareNode()),
    );
    const ratio = theirs / ours;
    const met = ratio >= 20 && ours <= 0.3;
    const target = '>= 20, median <= 0.3 ms';
    return [{ row: 'call and answer', ours, theirs, unit: 'ms', ratio, target, met }];
  },
};

/** Seconds from the start of a host to its hello line. */
async function startHost(): Promise<number> {
  const root = await mkdtemp(join(tmpdir(), 'bench-'));
  const args = [resolve('dist/host.mjs'), '--root', root, resolve('dist/providers/bridge-dir')];
  try {
    let child: ReturnType<typeof spawn> | undefined;
    const seconds = await timed(async () => {
      child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] });
      await new Promise((done) => child?.stdout?.once('data', done));
    });
    child?.kill('SIGKILL');
    return seconds;
  } finally {
    await rm(root, { recursive: true, force: true });
  }
}

/** Seconds from the start of a host to the answer of its first real call. */
async function startToAnswer(): Promise<number> {
  let host: HostProcess | undefined;
  const path = await mkdtemp(join(tmpdir(), 'bench-'));
  try {
    return await timed(async () => {
      host = await HostProcess.open({ path }, { provider: 'dist/providers/bridge-dir' });
      await host.call('status');
    });
  } finally {
    await host?.destroy();
    await rm(path, { recursive: true, force: true });
  }
}

export const startRow: Row = {
  name: 'start',
  opponent: 'bare node -e 0',
  async run() {
    const hello = await inTurn(rounds, startHost, bareNode);
    const answer = await inTurn(rounds, startToAnswer, bareNode);
    const result = (row: string, { ours, theirs }: typeof hello, least: number) => ({
      row,
      ours: ours * 1000,
      theirs: theirs * 1000,
      unit: 'ms',
      ratio: theirs / ours,
      target: `>= ${least}`,
      met: theirs / ours >= least,
    });
    return [
      result('host start to hello', hello, 0.5),
      result('host start to first answer', answer, 0.2),
    ];
  },
};
