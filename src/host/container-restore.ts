import { BackupError } from '../protocol/errors.ts';
import type { Archive } from '../sdk/provider.ts';
import { hideDevices } from '../toolbox/device-overlay.ts';
import { ReleaseStack } from '../toolbox/release.ts';
import { prepareTar } from '../toolbox/tar-prepare.ts';
import type { Context } from './session.ts';

/** How PVE names what it unpacks a container from [C7]. */
type ContainerPath = { 'tar-path': string } | { 'archive-directory': string };

/** How a container's archive is restored, or why not. */
export function containerMechanism(title: string, archive: Archive): 'tar' | 'directory' {
  if (archive.restoreContainer !== undefined && archive.containerMechanism !== undefined) {
    return archive.containerMechanism;
  }
  throw new BackupError(`${title} does not restore containers`);
}

/** Opens a container's archive for PVE, without what would make the unpacking fail in the middle [C7]. */
export async function openContainer(
  { title, scratch, mounts, log }: Context,
  archive: Archive,
  signal: AbortSignal,
): Promise<{ path: ContainerPath; stack: ReleaseStack }> {
  const mechanism = containerMechanism(title, archive);
  const stack = new ReleaseStack();
  try {
    const restore = await archive.restoreContainer?.(signal);
    if (restore === undefined) throw new BackupError(`${title} does not restore containers`);
    stack.add(`archive ${archive.info.name}`, () => restore.close());
    if (mechanism === 'tar') {
      const tar = await prepareTar(restore.path, {
        scratch,
        log,
        signal,
        sha256: restore.sha256,
      });
      stack.add('the checked archive', () => tar.close());
      return { path: { 'tar-path': tar.path }, stack };
    }
    const directory = await hideDevices(restore.path, { mounts, log, signal });
    stack.add('the directory of the container', () => directory.close());
    return { path: { 'archive-directory': directory.path }, stack };
  } catch (error) {
    await stack.release().catch((late: unknown) => log.debug(String(late)));
    throw error;
  }
}
