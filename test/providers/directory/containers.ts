import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { onTestFinished } from 'vitest';
import type {
  ContainerBackup,
  ContainerBackupInput,
  ContainerRestore,
  ContainerTree,
  Provider,
} from '../../../src/sdk/provider.ts';
import { makeTemporary, type Opened } from './setup.ts';

export const run = promisify(execFile);
export const never = new AbortController().signal;

/** A small root file system; `noise` bytes of it do not compress. */
export async function makeRoot(noise = 300_000): Promise<string> {
  const root = await makeTemporary();
  for (const name of ['sbin', 'etc', 'empty', 'tmp']) await mkdir(join(root, name));
  await writeFile(join(root, 'sbin/init'), '#!/bin/sh\n', { mode: 0o755 });
  await writeFile(join(root, 'etc/hostname'), 'guest\n');
  await writeFile(join(root, 'tmp/scratch'), 'not worth a backup\n');
  await writeFile(join(root, 'etc/text'), 'all the same '.repeat(20_000));
  await writeFile(join(root, 'noise'), randomBytes(noise));
  await symlink('/outside', join(root, 'etc/link'));
  return root;
}

/** Everything of a tree that a stranger would notice. */
export async function describeTree(root: string): Promise<string> {
  const script =
    'find . -mindepth 1 -printf "%P %y %m %U:%G %T@ %l\\n" | sort; ' +
    'find . -type f -print0 | sort -z | xargs -0 sha256sum';
  return (await run('sh', ['-c', script], { cwd: root })).stdout;
}

let seconds = Date.UTC(2026, 10, 23, 14, 0, 0) / 1000;

export interface ContainerOptions extends Partial<ContainerBackupInput> {
  readonly vmid?: number;
  readonly startTime?: Date;
}

export async function beginContainer(
  { provider }: Opened,
  { vmid = 300, startTime = new Date(++seconds * 1000) }: ContainerOptions = {},
): Promise<ContainerBackup> {
  const backup = await provider.backupContainer?.({ vmid, vmtype: 'lxc', startTime });
  if (backup === undefined) throw new Error('no container backup');
  return backup;
}

/** A whole backup of a container, in the host's order. */
export async function backUpContainer(
  storage: Opened,
  tree: ContainerTree,
  options: ContainerOptions = {},
): Promise<{ backup: ContainerBackup; archiveSize: number }> {
  const backup = await beginContainer(storage, options);
  let success = false;
  try {
    await backup.run({
      guestConfig: Buffer.from('hostname: guest\n'),
      tree,
      exclude: [],
      log: storage.log,
      signal: never,
      ...options,
    });
    success = true;
  } finally {
    if (!success) await backup.finish({ success });
  }
  return { backup, ...(await backup.finish({ success })) };
}

/** Closed with the test, too. */
export async function openContainer(provider: Provider, name: string): Promise<ContainerRestore> {
  const opened = await (await provider.archive(name)).restoreContainer?.(never);
  if (opened === undefined) throw new Error('no container restore');
  onTestFinished(() => opened.close());
  return opened;
}

/** Unpacks an archive as PVE does and describes what came out. */
export async function restoreTree(provider: Provider, name: string): Promise<string> {
  const target = await makeTemporary();
  const { path, close } = await openContainer(provider, name);
  try {
    await run('tar', ['-xpf', path, '--numeric-owner', '-C', target]);
    return await describeTree(target);
  } finally {
    await close();
  }
}
