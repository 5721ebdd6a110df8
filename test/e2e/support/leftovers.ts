import { readdir, readFile, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const quietMs = 10_000;

interface Expected {
  /** Processes that may run: the VMs. This one may always. */
  readonly pids?: readonly number[];
  /** What the test itself mounted. */
  readonly mounts?: readonly string[];
}

/** What is still there of the bridge after `quietMs`: processes, mounts and sockets that name the root. */
export async function leftAfterQuiet(root: string, expected: Expected = {}): Promise<string[]> {
  const start = Date.now();
  for (;;) {
    const left = [
      ...(await processesOf(root, expected.pids ?? [])),
      ...(await mountsBelow(root, expected.mounts ?? [])),
      ...(await socketsBelow(root)),
    ];
    if (left.length === 0 || Date.now() - start > quietMs) return left;
    await sleep(50);
  }
}

/** Living processes that name the root in their command line, as directory or as open file. */
async function processesOf(root: string, except: readonly number[]): Promise<string[]> {
  const found: string[] = [];
  for (const pid of await pids()) {
    if (pid === process.pid || except.includes(pid)) continue;
    const name = await commandLine(pid);
    const links = [`/proc/${pid}/cwd`, `/proc/${pid}/root`];
    const folder = `/proc/${pid}/fd`;
    for (const fd of await readdir(folder).catch(() => [])) links.push(join(folder, fd));
    const targets = await Promise.all(links.map((link) => readlink(link).catch(() => '')));
    if (name.includes(root) || targets.some((target) => target.startsWith(root))) {
      found.push(`process ${pid}: ${name.slice(0, 200)}`);
    }
  }
  return found;
}

/** The hosts of a node, one per PVE process and storage: `NODE HOST --root ROOT PROVIDER_DIR`. */
export async function hostPids(root: string): Promise<number[]> {
  const found: number[] = [];
  for (const pid of await pids()) {
    const words = (await commandLine(pid)).split(' ');
    if (words.length === 5 && words[2] === '--root' && words[3] === root) found.push(pid);
  }
  return found;
}

/** The processes whose parent has this pid. */
export async function childrenOf(parent: number): Promise<number[]> {
  const found: number[] = [];
  for (const pid of await pids()) {
    const stat = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '');
    const [state, ppid] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    if (state !== 'Z' && Number(ppid) === parent) found.push(pid);
  }
  return found;
}

async function pids(): Promise<number[]> {
  return (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number);
}

/** Empty for a zombie. */
async function commandLine(pid: number): Promise<string> {
  const text = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
  return text.split('\0').join(' ').trimEnd();
}

async function mountsBelow(root: string, except: readonly string[]): Promise<string[]> {
  const table = await readFile('/proc/self/mountinfo', 'utf8');
  const points = table.split('\n').map((line) => line.split(' ')[4] ?? '');
  return points
    .filter((point) => point.startsWith(`${root}/`) && !except.includes(point))
    .map((point) => `mount ${point}`);
}

/** QEMU's own are PVE's business. */
async function socketsBelow(root: string, folder = root): Promise<string[]> {
  if (folder === join(root, 'run/qemu-server')) return [];
  const entries = await readdir(folder, { withFileTypes: true }).catch(
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' || error.code === 'ENOTCONN') return []; // gone; a mount of its own
      throw error;
    },
  );
  const found: string[] = [];
  for (const entry of entries) {
    const path = join(folder, entry.name);
    if (entry.isSocket()) found.push(`socket ${path}`);
    else if (entry.isDirectory()) found.push(...(await socketsBelow(root, path)));
  }
  return found;
}

/** All that lies below a node's root but logs, records and what a host may have for its work. */
export async function pathsBelow(root: string, folder = root): Promise<string[]> {
  const found: string[] = [];
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    const name = path.slice(root.length + 1);
    if (/^(?:var\/(?:log|cache|lib)|run|calls\.jsonl)(?:\/|$)/.test(name)) continue;
    found.push(name);
    if (entry.isDirectory()) found.push(...(await pathsBelow(root, path)));
  }
  return found.sort();
}
