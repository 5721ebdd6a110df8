import type { Logger, TarOptions, TarStream, TarTotals } from '../sdk/provider.ts';
import { follow } from './abort.ts';
import { BandwidthLimiter } from './bandwidth.ts';
import { tarExcludes, uselessExcludes } from './excludes.ts';
import type { Namespaces } from './namespaces.ts';
import { startProgram } from './run.ts';
import { TarMessages } from './tar-messages.ts';
import { startTarPrograms } from './tar-programs.ts';

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
export const readerCapabilities = ['dac_read_search'];
const maxNamed = 20;

/** Starts tar inside the namespaces, and the filter outside. */
export async function startTar(source: TarSource, options: TarOptions): Promise<TarStream> {
  const { namespaces, directory, sources, bandwidthLimit, log } = source;
  const { exclude = [], through } = options;
  for (const pattern of uselessExcludes(exclude)) {
    log.warn(`the exclude pattern '${pattern}' matches nothing, since it ends with a slash`);
  }
  const changed = new Named(log);
  const messages = new TarMessages((text) => changed.add(text));
  const ending = new AbortController();
  const unfollow = follow(ending, source.signal, options.signal);
  const [program, ...args] = namespaces.enter(directory, readerCapabilities);
  const tar = [
    ...['tar', '--create', '--file=-', '--totals', '--verbose'],
    ...flags,
    ...tarExcludes(exclude),
    ...sources,
  ];
  try {
    const programs = await startTarPrograms({
      startTar: (plumbing) =>
        startProgram(program, [...args, ...tar], {
          ...plumbing,
          name: 'tar',
          env: { LC_ALL: 'C.UTF-8' },
          readStderr: (stream) => messages.read(stream),
        }),
      // The programs that lead to tar fail with status 1, too, but have no totals.
      isHarmless: ({ exitCode }) => exitCode === 1 && messages.totalBytes !== undefined,
      ...(through && { through }),
      ...(bandwidthLimit && { limiter: new BandwidthLimiter(bandwidthLimit) }),
      log,
      ending,
    });
    const done = programs.ended.then((): TarTotals => {
      changed.finish();
      return { entries: messages.entries, bytes: messages.totalBytes ?? 0 };
    });
    done.catch(() => undefined).finally(unfollow);
    return { stream: programs.stream, done };
  } catch (error) {
    unfollow();
    throw error;
  }
}

/** Names the first, counts the rest. */
class Named {
  readonly #log: Logger;
  #count = 0;

  constructor(log: Logger) {
    this.#log = log;
  }

  add(text: string): void {
    this.#count++;
    if (this.#count <= maxNamed) this.#log.warn(text);
  }

  finish(): void {
    if (this.#count > maxNamed) {
      this.#log.warn(`and ${this.#count - maxNamed} more files that changed meanwhile`);
    }
  }
}
