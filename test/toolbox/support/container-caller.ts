import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { processStartTime } from '../../../src/toolbox/processes.ts';

/** The ids outside of the container's ids 0 to 65535; uid and gid differ [A8]. */
export const uidOffset = 100_000;
export const gidOffset = 300_000;

/** Runs in the new mount namespace: $1 is the container, $2 where it is mounted. */
const mountScript = `
set -e
mount --make-rprivate /
mount --bind "$1" "$2"
eval "$3"
`;

/** A process in namespaces like those of vzdump's child, in whose view alone a container is mounted [A7, A8]. */
export class ContainerCaller {
  /** Everything of this container, traversable for all. */
  readonly base = mkdtempSync(join(tmpdir(), 'container-'));
  /** The container's files, as the host sees them. */
  readonly root = join(this.base, 'files');
  /** Where the caller sees them. */
  readonly directory = join(this.base, 'mnt');
  readonly privileged: boolean;
  #process: ChildProcess | undefined;
  #startTime = 0;

  constructor(options: { privileged?: boolean } = {}) {
    this.privileged = options.privileged ?? false;
    chmodSync(this.base, 0o755);
    mkdirSync(this.root);
    mkdirSync(this.directory);
  }

  get identity(): { pid: number; startTime: number } {
    return { pid: this.#process?.pid ?? 0, startTime: this.#startTime };
  }

  get userId(): number {
    return this.privileged ? 0 : uidOffset;
  }

  /** Runs a script as the host's root in the container's files, then gives them to the container's ids. */
  fill(script: string): this {
    execFileSync('bash', ['-euc', script], {
      cwd: this.root,
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    return this;
  }

  /** Moves the ids of all files into the container's map. */
  giveAway(): this {
    if (this.privileged) return this;
    const script = `find "$1" -printf '%U %G %p\\0' | while IFS=' ' read -rd '' u g p; do
      mode=$(stat -c %a -- "$p"); chown -h "$((u + ${uidOffset})):$((g + ${gidOffset}))" -- "$p"
      [ -L "$p" ] || chmod "$mode" -- "$p"; done`;
    execFileSync('bash', ['-c', script, 'bash', this.root]);
    return this;
  }

  /** Mounts it and starts the process; `mounts` is shell that runs beside, with the root as $2. */
  async start(mounts = ''): Promise<this> {
    const last = this.privileged
      ? 'exec sleep 1000'
      : 'exec unshare --user --mount --propagation unchanged sleep 1000';
    const args = ['--mount', 'sh', '-c', `${mountScript}\n${last}`, 'sh'];
    const child = spawn('unshare', [...args, this.root, this.directory, mounts], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    this.#process = child;
    const { pid } = child;
    if (pid === undefined) throw new Error('unshare does not start');
    while (readFileSync(`/proc/${pid}/comm`, 'utf8') !== 'sleep\n') {
      if (child.exitCode !== null) throw new Error('the caller cannot be started');
      await wait(5);
    }
    if (!this.privileged) {
      writeFileSync(`/proc/${pid}/uid_map`, `0 ${uidOffset} 65536`);
      writeFileSync(`/proc/${pid}/gid_map`, `0 ${gidOffset} 65536`);
    }
    this.#startTime = (await processStartTime(pid)) ?? 0;
    return this;
  }

  /** As the kernel ends it: without a word. */
  async kill(): Promise<void> {
    const child = this.#process;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await gone;
  }

  async remove(): Promise<void> {
    await this.kill();
    rmSync(this.base, { recursive: true, force: true });
  }
}
