import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmod,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { basename, join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { mountSquashfs } from '../../../src/providers/directory/squashfs-mount.ts';
import { isMounted, unmount } from '../../../src/toolbox/mounts.ts';
import {
  backUpContainer,
  describeTree,
  makeRoot,
  never,
  openContainer,
  restoreTree,
  run,
} from './containers.ts';
import { ProgramTree } from './program-tree.ts';
import {
  backUp,
  chunkFiles,
  MemoryVolume,
  makeStorage,
  type Opened,
  patterned,
  removeArchive,
} from './setup.ts';

/** An archive of a VM, which is removed while something is open: its chunk stays as long as that is so. */
async function makeVm(storage: Opened) {
  return (await backUp(storage, [new MemoryVolume('drive-scsi0', patterned(512, 1))])).backup;
}

describe('an archive of ours', () => {
  test('is restored from the tar itself; the lock of the store is shared meanwhile', async () => {
    const storage = await makeStorage();
    const { provider, path } = storage;
    const vm = await makeVm(storage);
    const { backup } = await backUpContainer(storage, new ProgramTree(await makeRoot()));
    const archive = await provider.archive(backup.archiveName);
    expect(archive.containerMechanism).toBe('tar');
    const opened = await openContainer(provider, backup.archiveName);
    expect(opened.path).toBe(join(path, backup.archiveName, 'archive.tar.zst'));
    await removeArchive(provider, vm.archiveName);
    expect(await chunkFiles(path)).toHaveLength(1);
    await opened.close();
    await opened.close();
    await provider.endJob?.();
    expect(await chunkFiles(path)).toEqual([]);
  });

  test('with a tar that is missing, short or a link is refused, and the lock given back', async () => {
    const storage = await makeStorage();
    const { provider, path } = storage;
    const vm = await makeVm(storage);
    const { backup } = await backUpContainer(storage, new ProgramTree(await makeRoot()));
    const tar = join(path, backup.archiveName, 'archive.tar.zst');
    const restore = () => openContainer(provider, backup.archiveName);
    const kept = join(path, '..', 'kept');
    await rename(tar, kept);
    await expect(restore()).rejects.toThrow(`archive ${backup.archiveName} has no archive.tar.zst`);
    await symlink(kept, tar);
    await expect(restore()).rejects.toThrow(/archive.tar.zst is not a regular file/);
    await rm(tar);
    await rename(kept, tar);
    const { length } = await readFile(tar);
    await (await restore()).close();
    await truncate(tar, length - 1);
    await expect(restore()).rejects.toThrow(
      `archive.tar.zst is damaged: it has ${length - 1} of ${length} bytes`,
    );
    // Whoever wants the store alone gets it.
    await removeArchive(provider, vm.archiveName);
    expect(await chunkFiles(path)).toEqual([]);
    await truncate(tar, length);
    const directory = join(path, backup.archiveName);
    await rename(directory, join(path, '..', 'moved'));
    await symlink('../../moved', directory);
    await expect(restore()).rejects.toThrow(/is not a directory/);
  });

  test('is restored as what it is', async () => {
    const storage = await makeStorage();
    const { provider } = storage;
    const vm = await provider.archive((await makeVm(storage)).archiveName);
    const done = await backUpContainer(storage, new ProgramTree(await makeRoot()));
    const container = await provider.archive(done.backup.archiveName);
    expect(vm.containerMechanism).toBeUndefined();
    await expect(vm.restoreContainer?.(never)).rejects.toThrow(/is not of a container/);
    await expect(container.restoreVm?.()).rejects.toThrow(/is not of a VM/);
  });
});

const example = '300/lxc-1700000000';

/** An archive as the example leaves it: a directory with `file` in it. */
async function makeExample(path: string, file: string, root: string): Promise<string> {
  const directory = join(path, example);
  await mkdir(directory, { recursive: true });
  await writeFile(join(directory, 'guest.conf'), 'hostname: example\n');
  const archive = join(directory, file);
  if (file.endsWith('.tar')) await run('tar', ['--format=pax', '-cf', archive, '-C', root, './']);
  else await run('mksquashfs', [root, archive, '-quiet', '-no-progress', '-noappend']);
  return archive;
}

/** Names in the mount table and among the loop devices. */
async function heldOf(path: string): Promise<string[]> {
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  const loops = (await run('losetup', ['-l', '-n', '-O', 'BACK-FILE'])).stdout.split('\n');
  return [...mounts, ...loops].filter((line) => line.includes(path));
}

describe('an archive of Proxmox’s directory example', () => {
  test('with a tar is listed and restored', async () => {
    const { provider, path } = await makeStorage();
    const root = await makeRoot();
    const tar = await makeExample(path, 'archive.tar', root);
    const { length } = await readFile(tar);
    const [info] = await provider.listArchives({ vmid: 300 });
    expect(info).toMatchObject({ name: example, vmtype: 'lxc' });
    expect(info?.startTime).toEqual(new Date(1_700_000_000_000));
    expect(info?.size).toBe(length + 'hostname: example\n'.length);
    const archive = await provider.archive(example);
    expect(archive.containerMechanism).toBe('tar');
    expect(await restoreTree(provider, example)).toBe(await describeTree(root));
    await expect(archive.restoreVm?.()).rejects.toThrow(/is not of a VM/);
    await removeArchive(provider, example);
    expect(await readdir(join(path, '300'))).toEqual([]);
  });

  test('with a squashfs image is mounted read-only for as long as it is open', async () => {
    const { provider, path } = await makeStorage();
    const root = await makeRoot();
    await chmod(join(root, 'sbin/init'), 0o4755);
    const image = await makeExample(path, 'archive.sqfs', root);
    expect((await provider.archive(example)).containerMechanism).toBe('directory');
    const opened = await openContainer(provider, example);
    const table = await readFile('/proc/self/mountinfo', 'utf8');
    const options = table.split('\n').find((line) => line.includes(` ${opened.path} `));
    expect(options).toMatch(/ ro,nosuid,nodev,noexec,\S+ - squashfs /);
    // Times of squashfs are whole seconds.
    const seconds = (text: string) => text.replace(/\.\d+ /g, ' ');
    expect(seconds(await describeTree(opened.path))).toBe(seconds(await describeTree(root)));
    await opened.close();
    await opened.close();
    expect(await heldOf(opened.path)).toEqual([]);
    expect(await heldOf(image)).toEqual([]);
    await expect(readdir(opened.path)).rejects.toThrow('ENOENT');
  });

  test('closes though somebody still looks into the image', async () => {
    const { provider, path } = await makeStorage();
    await makeExample(path, 'archive.sqfs', await makeRoot());
    const opened = await openContainer(provider, example);
    const child = spawn('sleep', ['60'], { cwd: opened.path });
    await once(child, 'spawn');
    try {
      await opened.close();
      expect(await isMounted(opened.path)).toBe(false);
      await expect(readdir(opened.path)).rejects.toThrow('ENOENT');
    } finally {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
  });

  test('with an image that is none, a link or missing is refused and leaves nothing', async () => {
    const { provider, path } = await makeStorage();
    const image = await makeExample(path, 'archive.sqfs', await makeRoot());
    const restore = () => openContainer(provider, example);
    const kept = join(path, '..', 'kept');
    await rename(image, kept);
    await symlink(kept, image);
    await expect(restore()).rejects.toThrow(/archive.sqfs is not a regular file/);
    await rm(image);
    await writeFile(image, patterned(100_000, 1));
    await expect(restore()).rejects.toThrow(
      /archive 300\/lxc-1700000000 cannot be restored: mount failed/,
    );
    expect(await heldOf(path)).toEqual([]);
    await rm(image);
    await expect(restore()).rejects.toThrow('archive 300/lxc-1700000000 has no archive.tar');
    await rename(kept, image);
    const archive = await provider.archive(example);
    await expect(archive.restoreContainer?.(AbortSignal.abort())).rejects.toThrow('cancelled');
    expect(await heldOf(path)).toEqual([]);
  });
});

test('mounts of killed processes go with the next restore or job, those of living ones stay', async () => {
  const { provider, path, runDir } = await makeStorage();
  const image = await makeExample(path, 'archive.sqfs', await makeRoot());
  const mine = await mountSquashfs(image, runDir, never);
  onTestFinished(() => mine.close());
  const leave = async (pid: number) => {
    const left = join(runDir, `squashfs-${pid}-1-1`);
    await mkdir(left);
    await run('mount', ['-t', 'squashfs', '-o', 'loop,ro', image, left]);
    onTestFinished(() => unmount(left));
    expect(await isMounted(left)).toBe(true);
    return left;
  };
  const first = await leave(process.pid);
  await provider.startJob?.({ startTime: new Date() });
  expect(await isMounted(first)).toBe(false);
  const second = await leave(2 ** 22 + 1);
  const third = join(runDir, 'squashfs-1-1-7');
  await mkdir(third);
  await writeFile(join(third, 'not ours'), '');
  const opened = await openContainer(provider, example);
  expect(await isMounted(second)).toBe(false);
  const left = (await readdir(runDir)).filter((name) => name.startsWith('squashfs-'));
  expect(left.sort()).toEqual([mine.path, opened.path, third].map((each) => basename(each)).sort());
  expect(await readdir(mine.path)).toContain('sbin');
  await opened.close();
});
