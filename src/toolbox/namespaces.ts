import { type FileHandle, open, stat } from 'node:fs/promises';
import { BackupError } from '../protocol/errors.ts';
import { processStartTime } from './processes.ts';

/** One process for ever. */
export interface ProcessIdentity {
  readonly pid: number;
  readonly startTime: number;
}

/** The user and mount namespaces of another process, which stay even when it ends. */
export interface Namespaces {
  /**
   * The start of a command line: what follows it runs inside, as root there, without supplementary groups,
   * and dies with this process. `capabilities`: the only ones it keeps.
   */
  enter(directory: string, capabilities?: readonly string[]): [program: string, ...args: string[]];
  /** End what runs inside first. */
  close(): Promise<void>;
}

/** A descriptor that this process inherited could lead out of the namespaces. */
const closeDescriptors = `
  opendir(my $dir, "/proc/self/fd") or die "cannot list the open files: $!\\n";
  for my $fd (grep { /^[0-9]+$/ && $_ > 2 } readdir($dir)) {
    open(my $file, "<&=", $fd) and close($file);
  }
  exec { $ARGV[0] } @ARGV or die "cannot start $ARGV[0]: $!\\n";
`;

/** Opens the namespaces of the process that calls us [A7, A8]; the user namespace only if it is not our own [A9]. */
export async function openNamespaces(caller: ProcessIdentity): Promise<Namespaces> {
  const handles: FileHandle[] = [];
  const close = async () => {
    for (const handle of handles.splice(0).reverse()) await handle.close();
  };
  const take = async (name: string) => {
    const handle = await open(`/proc/${caller.pid}/ns/${name}`);
    handles.push(handle);
    return handle;
  };
  try {
    const mount = await take('mnt');
    const user = await take('user');
    // Another process may have had this pid when the files were opened.
    if ((await processStartTime(caller.pid)) !== caller.startTime) throw gone(caller.pid);
    const own = await stat('/proc/self/ns/user');
    const theirs = await user.stat();
    const isOwn = own.ino === theirs.ino && own.dev === theirs.dev;
    return {
      enter(directory, capabilities) {
        if (handles.length === 0) throw new BackupError('the container tree is closed');
        // By their names in /proc nobody has to inherit the descriptors.
        const file = (handle: FileHandle) => `/proc/${process.pid}/fd/${handle.fd}`;
        return [
          ...(['perl', '-e', closeDescriptors, '--', 'nsenter'] as const),
          ...(isOwn ? [] : [`--user=${file(user)}`]),
          `--mount=${file(mount)}`,
          '--setuid=0',
          '--setgid=0',
          `--wdns=${directory}`,
          '--',
          // Again, since the kernel forgets the death signal when credentials change.
          '/usr/bin/setpriv',
          '--pdeathsig=KILL',
          ...(capabilities === undefined ? [] : keepOnly(capabilities)),
          '--',
        ];
      },
      close,
    };
  } catch (error) {
    await close();
    throw isMissing(error) ? gone(caller.pid, error) : error;
  }
}

function keepOnly(capabilities: readonly string[]): string[] {
  const kept = capabilities.map((name) => `,+${name}`).join('');
  return ['--inh-caps=-all', `--bounding-set=-all${kept}`];
}

function isMissing(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException).code;
  return code === 'ENOENT' || code === 'ESRCH';
}

function gone(pid: number, cause?: unknown): BackupError {
  const text = `process ${pid}, which asked for the backup of its container, has ended`;
  return new BackupError(text, { cause });
}
