import { mkdir, open, rm, rmdir, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { serveNbd } from '../nbd/server.ts';
import { BackupError } from '../protocol/errors.ts';
import type { Logger, RawImage } from '../sdk/provider.ts';
import { abortable, sleep } from './abort.ts';
import { deviceNumbers } from './device-numbers.ts';
import { unmount } from './mounts.ts';
import { collectStale, ownedName } from './owned-names.ts';
import { ReleaseStack } from './release.ts';
import { type RunningProgram, startProgram } from './run.ts';

export interface ExportOptions {
  /** On a tmpfs; shared by all exports of the node. */
  readonly directory: string;
  /** Of the file. */
  readonly name: string;
  readonly signal: AbortSignal;
  readonly log: Logger;
}

const mountMs = 15_000;
/** Linux asks a FUSE file for 128 KiB at a time; with more at once qemu-img reads twice as fast. */
const readAheadKiB = 4096;
const connections = 4;
const socketName = 's';

/**
 * Shows an image as a regular file, since PVE takes neither NBD nor pipes [C3]: our NBD server behind
 * nbdfuse. The image stays the caller's; `close` is idempotent and works on a file that is in use.
 */
export async function exportImage(
  image: RawImage,
  options: ExportOptions,
): Promise<{ path: string; close(): Promise<void> }> {
  const { name, signal, log } = options;
  const own = join(options.directory, await ownedName());
  const { mountPoint } = parts(own);
  const taken = new ReleaseStack();
  try {
    await mkdir(mountPoint, { recursive: true, mode: 0o700 });
    taken.add(`the directory ${own}`, () => removeEmpty(own));
    // A socket's path has 107 bytes at most: both ends name it relative to its directory.
    const handle = await open(own, 'r');
    taken.add(`the handle of ${own}`, () => handle.close());
    const socketPath = `/proc/self/fd/${handle.fd}/${socketName}`;
    const server = await serveNbd({ socketPath, exportName: '', image });
    taken.add(`the NBD server of ${name}`, () => server.close());
    const path = join(mountPoint, name);
    const nbdfuse = await startProgram(
      'nbdfuse',
      ['--readonly', '--connections', String(connections), path, '--unix', socketName],
      // On TERM it unmounts by itself: a killed host leaves no mount.
      { deathSignal: 'TERM', cwd: own, log },
    );
    taken.add(`nbdfuse of ${name}`, () => nbdfuse.stop());
    taken.add(`the mount of ${name}`, () => unmount(mountPoint));
    await abortable(mounted(path, image.size, nbdfuse), signal);
    // nbdfuse has all its connections: a host that is killed leaves no socket.
    await rm(parts(own).socket);
    await readAhead(path).catch((error: unknown) =>
      log.debug('cannot raise the read-ahead', { path, error: String(error) }),
    );
    return { path, close: () => taken.release() };
  } catch (error) {
    await taken.release().catch((late: unknown) => log.debug(String(late)));
    throw error;
  }
}

/** Removes what killed processes left of their exports; those of living ones stay. */
export async function collectStaleExports(directory: string, log: Logger): Promise<void> {
  await collectStale(directory, { log }, async (own) => {
    await unmount(parts(own).mountPoint);
    await removeEmpty(own);
  });
}

function parts(own: string): { socket: string; mountPoint: string } {
  return { socket: join(own, socketName), mountPoint: join(own, 'm') };
}

/** Never recursively: behind a mount that would not go lies the image. */
async function removeEmpty(own: string): Promise<void> {
  const { socket, mountPoint } = parts(own);
  await rm(socket, { force: true });
  for (const directory of [mountPoint, own]) {
    await rmdir(directory).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
    });
  }
}

/** Waits until the file is there in its full size. */
async function mounted(path: string, size: number, nbdfuse: RunningProgram): Promise<void> {
  let over = false;
  const ended = nbdfuse.exited.then(() => {
    throw new BackupError(`nbdfuse ended before it had mounted ${path}`);
  });
  const appears = async () => {
    for (const start = Date.now(); !over; await sleep(10)) {
      const found = await stat(path).catch(() => undefined);
      if (found?.isFile() && found.size === size) return;
      if (Date.now() - start > mountMs) {
        throw new BackupError(`nbdfuse has not mounted ${path} within ${mountMs / 1000} s`);
      }
    }
  };
  try {
    await Promise.race([appears(), ended]);
  } finally {
    over = true;
  }
}

async function readAhead(path: string): Promise<void> {
  const { major, minor } = deviceNumbers((await stat(path)).dev);
  await writeFile(`/sys/class/bdi/${major}:${minor}/read_ahead_kb`, String(readAheadKiB));
}
