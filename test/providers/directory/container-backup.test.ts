import { createHash } from 'node:crypto';
import { readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { BackupError } from '../../../src/protocol/errors.ts';
import type { ContainerTree, TarTotals } from '../../../src/sdk/provider.ts';
import {
  backUpContainer,
  beginContainer,
  describeTree,
  makeRoot,
  never,
  restoreTree,
  run,
} from './containers.ts';
import { ProgramTree } from './program-tree.ts';
import {
  backUp,
  chunkFiles,
  listNames,
  MemoryVolume,
  makeStorage,
  makeTemporary,
  patterned,
  removeArchive,
} from './setup.ts';

/** A tree whose tar is what it is given. */
function treeOf(stream: Readable, done: Promise<TarTotals>): ContainerTree {
  done.catch(() => undefined);
  return {
    directory: '/',
    sources: ['./'],
    userId: 0,
    tar: async () => ({ stream, done }),
    exec: () => Promise.reject(new Error('not used')),
  };
}

const sizeOf = async (path: string, files: string[]) =>
  (await Promise.all(files.map((file) => stat(join(path, file))))).reduce(
    (sum, { size }) => sum + size,
    0,
  );

describe.each([
  ['brotli', 'archive.tar.zst'],
  ['none', 'archive.tar'],
])('compression %s', (compression, file) => {
  test(`a container is stored as ${file} and comes back as it was`, async () => {
    const storage = await makeStorage({ 'bridge-dir-compression': compression });
    // More than one write of the store's.
    const root = await makeRoot(5_000_000);
    const { backup, archiveSize } = await backUpContainer(storage, new ProgramTree(root));
    const directory = join(storage.path, backup.archiveName);
    expect((await readdir(directory)).sort()).toEqual(['archive.json', file, 'guest.conf'].sort());
    expect(await restoreTree(storage.provider, backup.archiveName)).toBe(await describeTree(root));
    const content = await readFile(join(directory, file));
    const record = JSON.parse(await readFile(join(directory, 'archive.json'), 'utf8'));
    expect(record).toMatchObject({
      format: 1,
      vmtype: 'lxc',
      volumes: {},
      container: { tar: file, size: content.length, entries: 7, bytes: 12_345 },
    });
    const sha256 = createHash('sha256').update(content).digest('hex');
    expect(record.files[file]).toBe(sha256);
    expect(Object.keys(record.files).sort()).toEqual([file, 'guest.conf'].sort());
    if (file.endsWith('.zst')) await run('zstd', ['-tq', join(directory, file)]);
    expect(content.length > 5_250_000).toBe(compression === 'none');
    // D6: what is stored.
    expect(archiveSize).toBe(await sizeOf(directory, [file, 'guest.conf']));
    const [info] = await storage.provider.listArchives({ vmid: 300 });
    expect(info).toMatchObject({ name: backup.archiveName, vmtype: 'lxc', size: archiveSize });
  });
});

test('exclude patterns reach tar', async () => {
  const storage = await makeStorage();
  const root = await makeRoot();
  const tree = new ProgramTree(root);
  const exclude = ['./tmp/?*'];
  const { backup } = await backUpContainer(storage, tree, { exclude });
  const content = await restoreTree(storage.provider, backup.archiveName);
  expect(content).not.toContain('scratch');
  expect(content).toContain('hostname');
});

test('B16: configs come back byte for byte; an empty firewall config is none [B8, C8]', async () => {
  const storage = await makeStorage();
  const tree = new ProgramTree(await makeRoot());
  const guestConfig = Buffer.from([0x6e, 0xff, 0xfe, 0x0a, 0x0d, 0x00, 0xc3, 0x28]);
  const firewallConfig = Buffer.from('[OPTIONS]\r\n\xff', 'latin1');
  const one = await backUpContainer(storage, tree, { guestConfig, firewallConfig });
  const two = await backUpContainer(storage, tree, { firewallConfig: Buffer.alloc(0) });
  const first = await storage.provider.archive(one.backup.archiveName);
  const second = await storage.provider.archive(two.backup.archiveName);
  expect(Buffer.from(await first.guestConfig()).equals(guestConfig)).toBe(true);
  expect(Buffer.from((await first.firewallConfig()) ?? []).equals(firewallConfig)).toBe(true);
  expect(await second.firewallConfig()).toBeUndefined();
});

test('B12, B13: `finish` never undoes a commit; the log file goes into the archive', async () => {
  const storage = await makeStorage();
  const { backup, archiveSize } = await backUpContainer(storage, new ProgramTree(await makeRoot()));
  const log = join(storage.path, 'task.log');
  await writeFile(log, 'INFO: all is well\n');
  await backup.handleLogFile?.(log);
  const outcome = { success: false, error: 'a hook script failed' };
  expect(await backup.finish(outcome)).toEqual({ archiveSize });
  expect(await backup.finish(outcome)).toEqual({ archiveSize });
  expect(await listNames(storage.provider)).toEqual([backup.archiveName]);
  const kept = join(storage.path, backup.archiveName, 'backup.log');
  expect(await readFile(kept, 'utf8')).toBe('INFO: all is well\n');
});

test('`finish` without `run` leaves nothing', async () => {
  const storage = await makeStorage();
  const backup = await beginContainer(storage);
  const guest = join(storage.path, '300');
  expect(await readdir(guest)).toEqual([`${basename(backup.archiveName)}.partial`]);
  expect(await backup.finish({ success: false })).toEqual({ archiveSize: 0 });
  expect(await backup.finish({ success: false })).toEqual({ archiveSize: 0 });
  expect(await readdir(guest)).toEqual([]);
});

test('two backups of a container in one second: the second is refused', async () => {
  const storage = await makeStorage();
  const startTime = new Date('2026-11-23T10:06:42Z');
  const first = await beginContainer(storage, { startTime });
  expect(first.archiveName).toBe('300/lxc-2026-11-23T10:06:42Z');
  await expect(beginContainer(storage, { startTime })).rejects.toThrow(/two backups of a guest/);
  await first.finish({ success: false });
  const tree = new ProgramTree(await makeRoot());
  await backUpContainer(storage, tree, { startTime });
  await expect(beginContainer(storage, { startTime })).rejects.toThrow(/two backups of a guest/);
  expect(await listNames(storage.provider)).toHaveLength(1);
});

describe('nothing is committed', () => {
  async function fails(tree: ContainerTree, message: RegExp, signal = never) {
    const storage = await makeStorage();
    await expect(backUpContainer(storage, tree, { signal })).rejects.toThrow(message);
    expect(await listNames(storage.provider)).toEqual([]);
    expect(await readdir(join(storage.path, '300'))).toEqual([]);
    // No chunk has been written: there is nothing to sweep.
    const bridge = await readdir(join(storage.path, '.pve-backup-bridge'));
    expect(bridge).not.toContain('sweep-wanted');
    return storage;
  }

  test('when tar fails after it has written everything', async () => {
    const end = new BackupError('tar failed with exit status 2: sbin: Input/output error');
    const bytes = patterned(3_000_000, 1);
    await fails(treeOf(Readable.from([bytes]), Promise.reject(end)), /Input\/output error/);
  });

  test('when tar dies in the middle', async () => {
    const command = ['sh', '-c', 'head -c 3000000 /dev/urandom; kill -9 $$'];
    await fails(new ProgramTree('/', command), /sh ended with SIGKILL/);
  });

  test('when the compressor dies', async () => {
    const tree = new ProgramTree('/', ['cat', '/dev/urandom']);
    void tree.started.then(() => sleep(300)).then(() => process.kill(tree.pids[1] ?? 0, 'SIGKILL'));
    await fails(tree, /ended with SIG(KILL|PIPE)/);
  });

  test('when the stream is cut: the reason is tar’s', async () => {
    const stream = new Readable({
      read() {
        this.push(patterned(70_000, 1));
        setImmediate(() => this.destroy());
      },
    });
    const done = Promise.reject(new BackupError('tar was killed by SIGSEGV'));
    await fails(treeOf(stream, done), /tar was killed by SIGSEGV/);
    const failing = new Readable({
      read() {
        this.destroy(new Error('the pipe broke'));
      },
    });
    const fine = Promise.resolve({ entries: 1, bytes: 1 });
    await fails(treeOf(failing, fine), /cannot back up container 300: the pipe broke/);
  });

  test('when tar cannot be started', async () => {
    const tree = treeOf(Readable.from([]), Promise.resolve({ entries: 0, bytes: 0 }));
    tree.tar = () => Promise.reject(new BackupError('nsenter cannot be started'));
    await fails(tree, /nsenter cannot be started/);
  });

  test('when it is cancelled in the middle; tar is gone', async () => {
    const abort = new AbortController();
    const tree = new ProgramTree('/', ['cat', '/dev/zero']);
    void tree.started.then(() => sleep(400)).then(() => abort.abort());
    await fails(tree, /^cancelled$/, abort.signal);
    expect(tree.pids).toHaveLength(2);
    expect(tree.running).toEqual([]);
    const silent = new ProgramTree('/', ['sleep', '600']);
    const again = new AbortController();
    void silent.started.then(() => again.abort());
    await fails(silent, /^cancelled$/, again.signal);
    expect(silent.running).toEqual([]);
  });

  test('when it is cancelled before it begins', async () => {
    const tree = new ProgramTree('/');
    await fails(tree, /^cancelled$/, AbortSignal.abort());
    expect(tree.pids).toEqual([]);
  });

  test('when a link is planted where the tar goes', async () => {
    const storage = await makeStorage();
    const target = join(await makeTemporary(), 'target');
    await writeFile(target, 'untouched');
    const tree = new ProgramTree(await makeRoot());
    const tar = tree.tar.bind(tree);
    tree.tar = async (options) => {
      const [entry = ''] = await readdir(join(storage.path, '300'));
      await symlink(target, join(storage.path, '300', entry, 'archive.tar.zst'));
      return tar(options);
    };
    await expect(backUpContainer(storage, tree)).rejects.toThrow(/EEXIST/);
    expect(await readFile(target, 'utf8')).toBe('untouched');
    expect(tree.running).toEqual([]);
    expect(await readdir(join(storage.path, '300'))).toEqual([]);
  });
});

test('containers and VMs share a store: sweeps and the list take both', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const disks = () => [new MemoryVolume('drive-scsi0', patterned(512, 1))];
  const tree = new ProgramTree(await makeRoot());
  const vm = await backUp(storage, disks());
  const one = await backUpContainer(storage, tree);
  const two = await backUpContainer(storage, tree, { vmid: 301 });
  expect(await listNames(provider)).toHaveLength(3);
  await removeArchive(provider, two.backup.archiveName);
  expect(await readdir(join(path, '301'))).toEqual([]);
  expect(await chunkFiles(path)).toHaveLength(1);
  await removeArchive(provider, vm.backup.archiveName);
  expect(await chunkFiles(path)).toEqual([]);
  await provider.startJob?.({ startTime: new Date() });
  await provider.endJob?.();
  expect(await listNames(provider)).toEqual([one.backup.archiveName]);
  const archive = await provider.archive(one.backup.archiveName);
  await archive.setNotes('of a container');
  await archive.setProtected(true);
  await expect(archive.remove()).rejects.toThrow(/is protected/);
  const [info] = await provider.listArchives({});
  expect(info).toMatchObject({ notes: 'of a container', protected: true });
});
