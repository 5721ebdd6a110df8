import { readFile } from 'node:fs/promises';
import { messageOf, oneLine } from '../protocol/errors.ts';
import type { Logger, TarOptions, TarStream, TarTotals } from '../sdk/provider.ts';
import { follow } from './abort.ts';
import { BandwidthLimiter } from './bandwidth.ts';
import { ContainerProgress, type TarCounts } from './container-progress.ts';
import { scanTree } from './container-scan.ts';
import { tarExcludes, uselessExcludes } from './excludes.ts';
import type { Namespaces } from './namespaces.ts';
import { openPipe } from './pipe.ts';
import { startProgram } from './run.ts';
import { leastMembers } from './tar-check.ts';
import { TarMessages } from './tar-messages.ts';
import { startTarPrograms, type TarPrograms } from './tar-programs.ts';

export interface TarSource {
  readonly namespaces: Namespaces;
  readonly directory: string;
  readonly sources: readonly string[];
  readonly bandwidthLimit?: number;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** Of PVE's own backups. Without `--no-unquote` a backslash in a mount point would be an escape. */
const flags = [
  '--one-file-system',
  '-p',
  '--sparse',
  '--numeric-owner',
  '--acls',
  '--xattrs',
  '--xattrs-include=user.*',
  '--xattrs-include=security.capability',
  '--warning=no-file-ignored',
  '--warning=no-xattr-write',
  '--warning=no-xdev',
  '--no-unquote',
];
/** Reads what its owner alone may read, and can do nothing else. */
const capabilities = ['dac_read_search'];
const intervalMs = 3000;
const maxNamed = 20;
const maxLine = 1000;
const willRefuse = 'PVE will refuse to restore it';

/** Starts tar inside the namespaces, and the filter outside. */
export async function startTar(source: TarSource, options: TarOptions): Promise<TarStream> {
  const { namespaces, directory, sources, bandwidthLimit, log } = source;
  const { exclude = [], through } = options;
  for (const pattern of uselessExcludes(exclude)) {
    log.warn(`the exclude pattern '${pattern}' matches nothing, since it ends with a slash`);
  }
  let changes = 0;
  const messages = new TarMessages((text) => {
    changes++;
    if (changes <= maxNamed) log.warn(shorten(text));
  });
  const ending = new AbortController();
  const unfollow = follow(ending, source.signal, options.signal);
  const [program, ...lead] = namespaces.enter(directory, capabilities);
  const tar = [
    ...['tar', '--create', '--file=-', '--totals', '--verbose'],
    ...flags,
    ...tarExcludes(exclude),
    ...sources,
  ];
  try {
    const programs = await startTarPrograms({
      startTar: async (plumbing) => {
        // A socket holds few of the many short lines: tar would wait for us all the time.
        const said = await openPipe();
        const stderr = said.stream();
        try {
          return await startProgram(program, [...lead, ...tar], {
            ...plumbing,
            name: 'tar',
            env: { LC_ALL: 'C.UTF-8' },
            stderr: { fd: said.writer, stream: stderr },
            readStderr: (stream) => messages.read(stream),
          });
        } catch (error) {
          stderr.destroy();
          throw error;
        } finally {
          said.close();
        }
      },
      // The programs that lead to tar fail with status 1, too, but have no totals.
      isHarmless: ({ exitCode }) => exitCode === 1 && messages.totalBytes !== undefined,
      ...(through && { through }),
      ...(bandwidthLimit && { limiter: new BandwidthLimiter(bandwidthLimit) }),
      log,
      ending,
    });
    const progress = new ContainerProgress({ log });
    const counts = (bytes: number): TarCounts => ({
      entries: messages.entries,
      bytes,
      ...(through && { written: programs.written() }),
    });
    const timer = setInterval(async () => {
      const bytes = await bytesRead(programs);
      if (bytes !== undefined) progress.update(counts(bytes));
    }, intervalMs);
    const scanned = scan(source, { exclude, signal: ending.signal }, progress);
    const done = programs.ended
      .finally(() => clearInterval(timer))
      .then(async (): Promise<TarTotals> => {
        await scanned;
        if (changes > maxNamed) log.warn(`and ${changes - maxNamed} more such warnings of tar`);
        if (messages.entries < leastMembers) log.warn(`fewer than ten files: ${willRefuse}`);
        const bytes = messages.totalBytes ?? 0;
        progress.finish(counts(bytes));
        return { entries: messages.entries, bytes };
      })
      .finally(unfollow);
    done.catch(() => undefined);
    return { stream: programs.stream, done };
  } catch (error) {
    unfollow();
    throw error;
  }
}

async function scan(
  source: TarSource,
  options: { exclude: readonly string[]; signal: AbortSignal },
  progress: ContainerProgress,
): Promise<void> {
  const { log } = source;
  try {
    const { devices, hasSbin, ...totals } = await scanTree(source, { ...options, capabilities });
    progress.expect(totals);
    if (!hasSbin) log.warn(`the container has no /sbin: ${willRefuse}`);
    for (const name of devices.first) {
      log.warn(
        `${shorten(name)} is a device node: it is in the archive,` +
          ' but cannot be restored into an unprivileged container',
      );
    }
    const more = devices.count - devices.first.length;
    if (more > 0) log.warn(`and ${more} more device nodes outside ./dev`);
  } catch (error) {
    log.debug(`the container could not be counted: ${messageOf(error)}`);
  }
}

/** What tar wrote; if it has ended meanwhile, nothing. */
async function bytesRead(programs: TarPrograms): Promise<number | undefined> {
  const counted = programs.read();
  if (counted !== undefined) return counted;
  const text = await readFile(`/proc/${programs.tarPid}/io`, 'latin1').catch(() => '');
  const written = /^wchar: (\d+)$/m.exec(text)?.[1];
  return written === undefined ? undefined : Number(written);
}

function shorten(text: string): string {
  const line = oneLine(text);
  if (line.length <= maxLine) return line;
  return `${line.slice(0, maxLine / 2)} … ${line.slice(-maxLine / 2)}`;
}
