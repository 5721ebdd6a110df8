import type { TarSource } from './container-tar.ts';
import { findExcludes } from './excludes.ts';
import { startProgram } from './run.ts';

/** What a tar of the container is going to hold, about. */
export interface TreeTotals {
  readonly entries: number;
  readonly bytes: number;
}

export interface TreeScan extends TreeTotals {
  /** Whether there is ./sbin, a directory or a link, as PVE asks for [C7]. */
  readonly hasSbin: boolean;
  /** Device nodes outside ./dev: the first names, and how many there are. */
  readonly devices: { readonly first: readonly string[]; readonly count: number };
}

const maxNamed = 10;
/** A name longer than any path. */
const maxRecord = 8192;
const sectorSize = 512;
/** A member's own header, and the pax header with its times. */
const headerBytes = 3 * sectorSize;

/** Walks the container with find(1) in its namespaces, much faster than tar can read it. */
export async function scanTree(
  { namespaces, directory, sources, log }: Omit<TarSource, 'signal'>,
  options: { exclude: readonly string[]; capabilities: readonly string[]; signal: AbortSignal },
): Promise<TreeScan> {
  const [program, ...lead] = namespaces.enter(directory, options.capabilities);
  const stat = ['stat', '--printf=D%r %n\\0', '--'];
  const sbin = ['(', '-type', 'd', '-o', '-type', 'l', ')'];
  const find = [
    ...['find', ...sources, '-nowarn', '-ignore_readdir_race', '-xdev'],
    ...[...findExcludes(options.exclude), '-prune', '-o'],
    ...['-type', 'b', '!', '-path', './dev/*', '-printf', 'Db %p\\0', '-o'],
    // Of find alone no device's number is to be had.
    ...['-type', 'c', '!', '-path', './dev/*', '-exec', ...stat, '{}', '+'],
    ...['-o', '-path', './sbin', ...sbin, '-printf', 'S\\0'],
    ...['-o', '-printf', '%y %b %s\\0'],
  ];
  const { stdin, stdout, exited } = await startProgram(program, [...lead, ...find], {
    signal: options.signal,
    name: 'find',
    log,
  });
  stdin.end();
  const totals = { entries: 0, bytes: 0 };
  let hasSbin = false;
  const devices = { first: [] as string[], count: 0 };
  for await (const record of records(stdout)) {
    totals.entries++;
    totals.bytes += headerBytes;
    const [type, blocks, size] = record.split(' ', 3);
    const name = /^D\w+ (.*)$/s.exec(record)?.[1];
    if (name !== undefined) {
      // A whiteout of overlayfs can be restored.
      if (type === 'D0') continue;
      devices.count++;
      if (devices.first.length < maxNamed) devices.first.push(name);
    } else if (type === 'S') {
      hasSbin = true;
    } else if (type === 'f') {
      // A sparse file has fewer blocks than its size needs, a small one more.
      const data = Math.min(Number(size), Number(blocks) * sectorSize);
      totals.bytes += Math.ceil(data / sectorSize) * sectorSize;
    }
  }
  await exited;
  return { ...totals, devices, hasSbin };
}

async function* records(chunks: AsyncIterable<Buffer>): AsyncIterable<string> {
  let rest = '';
  for await (const chunk of chunks) {
    const parts = (rest + chunk.toString('latin1')).split('\0');
    rest = (parts.pop() ?? '').slice(0, maxRecord);
    // Names come as bytes that may be cut between chunks.
    for (const part of parts) yield Buffer.from(part, 'latin1').toString();
  }
}
