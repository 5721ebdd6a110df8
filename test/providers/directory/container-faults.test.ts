import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, onTestFinished, test } from 'vitest';
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
  openStorage,
  patterned,
} from './setup.ts';

const partial = '300/lxc-2026-11-23T12:00:00Z.partial';
const job = { startTime: new Date() };

test.each([
  ['a tmpfs', async (path: string) => run('mount', ['-t', 'tmpfs', '-o', 'size=12m', 'x', path])],
  [
    'ext4 in a file',
    async (path: string) => {
      const image = join(await makeTemporary(), 'image');
      await run('mke2fs', ['-q', '-t', 'ext4', '-m', '0', image, '16m']);
      await run('mount', ['-o', 'loop', image, path]);
      await rm(join(path, 'lost+found'), { recursive: true });
    },
  ],
])('%s that gets full: a clear error, tar stopped, nothing left', async (_, mount) => {
  const path = await makeTemporary();
  await mount(path);
  onTestFinished(async () => {
    await run('umount', [path]);
  });
  const storage = await openStorage(path);
  const { provider } = storage;
  const root = await makeRoot();
  const first = await backUpContainer(storage, new ProgramTree(root));
  const { available } = await provider.status();
  const plain = await openStorage(path, { 'bridge-dir-compression': 'none' });
  for (const [opened, fill] of [
    // Does not end by itself, not even for want of a reader.
    [storage, 'cat /dev/urandom'],
    // Says nothing more after the write that failed.
    [plain, `head -c ${available + 1_200_000} /dev/urandom`],
  ] as const) {
    const tree = new ProgramTree('/', ['sh', '-c', `trap "" PIPE; ${fill}; exec sleep 600`]);
    await expect(backUpContainer(opened, tree, { vmid: 301 })).rejects.toThrow(
      /cannot back up container 301: the store .* is full: remove or prune/,
    );
    expect(tree.pids.length).toBeGreaterThan(0);
    expect(tree.running).toEqual([]);
  }
  expect(await listNames(provider)).toEqual([first.backup.archiveName]);
  expect(await readdir(join(path, '301'))).toEqual([]);
  // The space is there again at once, for the next guest of the job.
  expect((await provider.status()).available).toBeGreaterThanOrEqual(available - 64 * 1024);
  const next = await backUpContainer(storage, new ProgramTree(root), { vmid: 301 });
  const content = await describeTree(root);
  expect(await restoreTree(provider, first.backup.archiveName)).toBe(content);
  expect(await restoreTree(provider, next.backup.archiveName)).toBe(content);
});

/** Starts a backup in another process and returns when it is in the middle. */
async function startWriter(path: string): Promise<() => Promise<void>> {
  const script = new URL('./container-writer.ts', import.meta.url).pathname;
  const child = spawn(
    process.execPath,
    ['--import', 'tsx', script, path, await makeTemporary()],
    // A group of its own: what it started goes with it.
    { stdio: ['ignore', 'inherit', 'pipe'], detached: true },
  );
  const ended = once(child, 'exit');
  let killed = false;
  const kill = async () => {
    if (!killed && child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    killed = true;
    await ended;
  };
  onTestFinished(kill);
  await once(child.stderr, 'data');
  const tar = join(path, partial, 'archive.tar');
  const size = async () => (await stat(tar).catch(() => ({ size: 0 }))).size;
  for (let tries = 0; tries < 200 && (await size()) < 10_000_000; tries++) await sleep(50);
  expect(await size()).toBeGreaterThan(10_000_000);
  return kill;
}

/** The kernel releases a lock a moment after its process. */
async function startJobUntilGone(
  { provider }: Awaited<ReturnType<typeof makeStorage>>,
  path: string,
): Promise<void> {
  for (let tries = 0; tries < 50; tries++) {
    await provider.startJob?.(job);
    if ((await stat(path).catch(() => undefined)) === undefined) return;
    await sleep(100);
  }
  throw new Error(`${path} is still there`);
}

test('kill -9 in the middle: nothing is listed, nothing left, earlier archives intact', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const root = await makeRoot();
  const before = await backUpContainer(storage, new ProgramTree(root));
  const kill = await startWriter(path);
  // A live run of another process is left alone.
  await provider.startJob?.(job);
  expect(await readdir(join(path, partial))).toContain('archive.tar');
  await kill();
  expect(await listNames(provider)).toEqual([before.backup.archiveName]);
  await startJobUntilGone(storage, join(path, partial));
  expect(await readdir(join(path, '300'))).toHaveLength(1);
  expect(await restoreTree(provider, before.backup.archiveName)).toBe(await describeTree(root));
});

test('a power failure during the backup of a container costs no reading of chunks', async () => {
  const storage = await makeStorage();
  const { provider, path, log } = storage;
  await backUp(storage, [new MemoryVolume('drive-scsi0', patterned(512, 1))]);
  await mkdir(join(path, partial), { recursive: true });
  await writeFile(join(path, partial, 'run.json'), '{"bootId":"of another boot"}');
  await writeFile(join(path, partial, 'archive.tar.zst'), 'half');
  await provider.startJob?.(job);
  await expect(stat(join(path, partial))).rejects.toThrow('ENOENT');
  expect(log.lines.join('\n')).not.toContain('are checked');
  expect(await chunkFiles(path)).toHaveLength(1);
});

test('the end of the host in the middle leaves nothing, and no sweep to do', async () => {
  const storage = await makeStorage();
  const { provider, path, abort } = storage;
  const tree = new ProgramTree('/', ['cat', '/dev/zero']);
  const backup = await beginContainer(storage);
  const running = backup.run({
    guestConfig: Buffer.from('hostname: guest\n'),
    tree,
    exclude: [],
    log: storage.log,
    signal: abort.signal,
  });
  const failed = expect(running).rejects.toThrow('cancelled');
  await tree.started;
  await sleep(300);
  abort.abort();
  await provider.close?.();
  await failed;
  expect(tree.running).toEqual([]);
  expect(await readdir(join(path, '300'))).toEqual([]);
  expect(await readdir(join(path, '.pve-backup-bridge'))).not.toContain('sweep-wanted');
});

test('a damaged archive.json: listed, but no restore of it', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const tree = new ProgramTree(await makeRoot());
  const { backup } = await backUpContainer(storage, tree);
  const file = join(path, backup.archiveName, 'archive.json');
  const text = await readFile(file, 'utf8');
  for (const damaged of [
    text.slice(0, 100),
    text.replace('"archive.tar.zst",', '"../../etc/shadow",'),
    text.replace(/"size": \d+/, '"size": -1'),
  ]) {
    expect(damaged).not.toBe(text);
    await writeFile(file, damaged);
    expect(await listNames(provider)).toEqual([backup.archiveName]);
    const archive = await provider.archive(backup.archiveName);
    await expect(archive.restoreContainer?.(never)).rejects.toThrow(/archive.json is damaged/);
  }
});
