import { spawn } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { text } from 'node:stream/consumers';
import { makeTemporary } from '../providers/directory/setup.ts';

export interface CliResult {
  readonly status: number | string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A node's files with storages, by their ids; it is in the cluster that the tests' stores belong to. */
export async function makeNodeRoot(storages: Readonly<Record<string, string>>): Promise<string> {
  const root = await makeTemporary();
  await mkdir(join(root, 'etc/pve'), { recursive: true });
  await writeFile(join(root, 'etc/pve/corosync.conf'), 'totem {\n  cluster_name: one\n}\n');
  const sections = Object.entries(storages).map(
    ([id, path]) => `bridge-dir: ${id}\n\tpath ${path}\n`,
  );
  const others = 'dir: local\n\tpath /var/lib/vz\n';
  await writeFile(join(root, 'etc/pve/storage.cfg'), [others, ...sections].join('\n'));
  return root;
}

/** Starts the built command; `signal` is sent as soon as it prints something. */
export async function runCli(
  args: readonly string[],
  options: { signal?: NodeJS.Signals } = {},
): Promise<CliResult> {
  const child = spawn(process.execPath, [resolve('dist/cli.mjs'), ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const { signal } = options;
  if (signal !== undefined) child.stdout.once('data', () => child.kill(signal));
  const ended = new Promise<number | string | null>((done) => {
    child.on('exit', (code, killedBy) => done(killedBy ?? code));
  });
  const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
  return { status: await ended, stdout, stderr };
}
