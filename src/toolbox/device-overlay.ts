import { lstat, mkdir, open, realpath, rmdir } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { BackupError } from '../protocol/errors.ts';
import type { Logger } from '../sdk/provider.ts';
import { collectStaleExports } from './image-export.ts';
import { detach } from './mounts.ts';
import { ownedName } from './owned-names.ts';
import { ReleaseStack } from './release.ts';
import { run } from './run.ts';
import { deviceWarning } from './tar-devices.ts';

export interface HideDevicesOptions {
  /** On a tmpfs: views and sockets are made below it. */
  readonly mounts: string;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** A directory tree for PVE; `close` is idempotent. */
export interface PreparedDirectory {
  readonly path: string;
  close(): Promise<void>;
}

/** Each one is a mount. */
const maxDevices = 1000;
const socketName = 's';

/**
 * A view of a container's tree without device nodes outside ./dev, which cannot be restored [C7]: the tree
 * itself, bound elsewhere with a socket over each device node, since tar passes over sockets. All else is the
 * same files, with all their attributes.
 */
export async function hideDevices(
  directory: string,
  options: HideDevicesOptions,
): Promise<PreparedDirectory> {
  const { log, signal } = options;
  const root = await realpath(directory);
  const devices = await findDevices(root, signal);
  if (devices.length === 0) return { path: directory, close: async () => undefined };
  log.warn(deviceWarning(devices, devices.length));
  if (devices.length > maxDevices) {
    const text = `${directory} has ${devices.length} device nodes outside ./dev`;
    throw new BackupError(`${text}; remove some: no more than ${maxDevices} can be left out`);
  }
  const own = join(viewsIn(options.mounts), await ownedName());
  const view = join(own, 'm');
  const taken = new ReleaseStack();
  try {
    await mkdir(view, { recursive: true, mode: 0o700 });
    taken.add(`the directory ${own}`, () => rmdir(own));
    taken.add(`the directory ${view}`, () => rmdir(view));
    const socket = await makeSocket(own);
    taken.add('the socket over device nodes', () => socket.close());
    // One by one a thousand mounts take longer than a release may; nobody else sees this tree.
    taken.add(`the mounts on ${view}`, () => detach(view));
    // Private, or what covers a device node here would do so in the tree itself.
    await run('mount', ['--rbind', '--make-rprivate', '--', root, view], { signal });
    const targets = devices.map((name) => Buffer.concat([Buffer.from(`${view}/`), name, nul]));
    const input = Buffer.concat(targets);
    // By way of xargs, since names are any bytes.
    const cover = ['-0', '-n', '1', 'mount', '--bind', '--', join(own, socketName)];
    await run('xargs', cover, { signal, input });
    return { path: view, close: () => taken.release() };
  } catch (error) {
    await taken.release().catch((late: unknown) => log.debug(String(late)));
    throw error;
  }
}

/** Removes what killed processes left of their views; those of living ones stay. */
export async function collectStaleViews(mounts: string, log: Logger): Promise<void> {
  await collectStaleExports(viewsIn(mounts), log);
}

const nul = Buffer.from([0]);

function viewsIn(mounts: string): string {
  return join(mounts, 'trees');
}

/** Relative to the root; without whiteouts of overlayfs, which can be restored like files. */
async function findDevices(root: string, signal: AbortSignal): Promise<Buffer[]> {
  const dev = ['-path', './dev', '-prune'];
  const args = ['.', '-mindepth', '1', ...dev, '-o', '-type', 'b,c', '-printf', '%P\\0'];
  const found = await run('find', args, { signal, cwd: root });
  const names: Buffer[] = [];
  for (let at = 0, end = 0; at < found.length; at = end + 1) {
    end = found.indexOf(0, at);
    const name = found.subarray(at, end);
    const node = await lstat(Buffer.concat([Buffer.from(`${root}/`), name]));
    if (!node.isCharacterDevice() || node.rdev !== 0) names.push(name);
  }
  return names;
}

/** A socket's path has 107 bytes at most: it is named relative to its directory. */
async function makeSocket(directory: string): Promise<{ close(): Promise<void> }> {
  const handle = await open(directory, 'r');
  const server = createServer((connection) => connection.destroy());
  const close = async () => {
    // Removes the file as well.
    await new Promise((resolve) => server.close(resolve));
    await handle.close();
  };
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(`/proc/self/fd/${handle.fd}/${socketName}`, resolve);
    });
    server.unref();
    return { close };
  } catch (error) {
    await close();
    throw error;
  }
}
