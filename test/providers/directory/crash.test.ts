import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  mkdir,
  readdir,
  readFile,
  rmdir,
  stat,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { basename, join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import {
  backUp,
  chunk,
  chunkFiles,
  filesIn,
  listNames,
  MemoryVolume,
  makeStorage,
  makeTemporary,
  openStorage,
  patterned,
  restore,
} from './setup.ts';

const partial = '100/qemu-2026-11-23T12:00:00Z.partial';
const disk = Buffer.concat([...Array(8).keys()].map((seed) => patterned(chunk, 50 + seed)));
const job = { startTime: new Date() };

/** Starts a backup in another process and returns when it is in the middle. */
async function startWriter(path: string) {
  const script = new URL('./writer.ts', import.meta.url).pathname;
  const runDir = await makeTemporary();
  const child = spawn(process.execPath, ['--import', 'tsx', script, path, runDir], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = once(child, 'exit');
  onTestFinished(() => void child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  // The chunks before have had time to be stored.
  for (let tries = 0; tries < 100 && (await stored(path)).length < 5; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return {
    async kill() {
      child.kill('SIGKILL');
      await ended;
    },
  };
}

/** Chunks that have got their names. */
async function stored(path: string): Promise<string[]> {
  return (await chunkFiles(path)).filter((file) => !file.endsWith('.tmp'));
}

/** The kernel releases a lock a moment after its process. */
async function startJobUntilGone(
  storage: { provider: { startJob?: (job: { startTime: Date }) => Promise<void> } },
  path: string,
) {
  for (let tries = 0; tries < 50; tries++) {
    await storage.provider.startJob?.(job);
    const left = await stat(path).catch(() => undefined);
    if (left === undefined) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`${path} is still there`);
}

test('kill -9 in the middle: nothing is listed, nothing left, earlier archives intact', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const old = patterned(2 * chunk + 512, 1);
  const before = await backUp(storage, [new MemoryVolume('drive-scsi0', old)]);
  const writer = await startWriter(path);
  // A live run of another process is left alone.
  await provider.startJob?.(job);
  expect((await stat(join(path, partial))).isDirectory()).toBe(true);
  expect((await stored(path)).length).toBeGreaterThan(3);
  await writer.kill();
  expect(await listNames(provider)).toEqual([before.backup.archiveName]);
  await startJobUntilGone(storage, join(path, partial));
  expect(await readdir(join(path, '100'))).toEqual([basename(before.backup.archiveName)]);
  expect(await chunkFiles(path)).toHaveLength(3);
  const content = await restore(provider, before.backup.archiveName, 'drive-scsi0');
  expect(content.equals(old)).toBe(true);
  const after = await backUp(storage, [new MemoryVolume('drive-scsi0', disk)]);
  const now = await restore(provider, after.backup.archiveName, 'drive-scsi0');
  expect(now.equals(disk)).toBe(true);
});

test('after a power failure, chunks of the dead run that have lost their content are not used', async () => {
  const storage = await makeStorage();
  const { provider, path, log } = storage;
  const old = patterned(2 * chunk, 1);
  const before = await backUp(storage, [new MemoryVolume('drive-scsi0', old)]);
  const old3 = await chunkFiles(path);
  for (const file of old3) await utimes(file, 1_700_000_000, 1_700_000_000);
  const writer = await startWriter(path);
  await writer.kill();
  await writeFile(join(path, partial, 'run.json'), '{"bootId":"of another boot"}');
  const fresh = (await stored(path)).filter((file) => !old3.includes(file));
  const [cut = '', flipped = ''] = fresh;
  await truncate(cut, 1000);
  const bytes = await readFile(flipped);
  bytes[5000] = (bytes[5000] ?? 0) ^ 1;
  await writeFile(flipped, bytes);
  const opened = await (await provider.archive(before.backup.archiveName)).restoreVm?.();
  await provider.startJob?.(job);
  expect((await stat(join(path, partial))).isDirectory()).toBe(true);
  expect(log.lines).toContainEqual(expect.stringMatching(/dead backups left is freed after them/));
  await opened?.close();
  await startJobUntilGone(storage, join(path, partial));
  expect(log.lines).toContain('warn 2 damaged chunks were set aside');
  const aside = await readdir(join(path, '.pve-backup-bridge/damaged'));
  expect(aside.sort()).toEqual([basename(cut), basename(flipped)].sort());
  const after = await backUp(storage, [new MemoryVolume('drive-scsi0', disk)]);
  const now = await restore(provider, after.backup.archiveName, 'drive-scsi0');
  expect(now.equals(disk)).toBe(true);
});

test('a damaged chunk that an archive names marks the archive', async () => {
  const storage = await makeStorage();
  const { provider, path } = storage;
  const first = await backUp(storage, [new MemoryVolume('drive-scsi0', patterned(2 * chunk, 1))]);
  const { archiveName } = first.backup;
  const other = await backUp(storage, [new MemoryVolume('drive-scsi0', patterned(512, 5))], {
    vmid: 101,
  });
  const [file = ''] = await chunkFiles(path);
  const hex = basename(file, '.br');
  const index = await readFile(join(path, archiveName, 'drive-scsi0.index'));
  const [hit, spared] = index.includes(hex, 0, 'hex')
    ? [archiveName, other.backup.archiveName]
    : [other.backup.archiveName, archiveName];
  await truncate(file, 10);
  await mkdir(join(path, partial), { recursive: true });
  await writeFile(join(path, partial, 'run.json'), '{"bootId":"of another boot"}');
  // Where the mark cannot be made the chunk stays, and the leftover with it.
  await mkdir(join(path, hit, 'damaged'));
  await provider.startJob?.(job);
  expect((await stat(file)).size).toBe(10);
  await rmdir(join(path, hit, 'damaged'));
  await provider.startJob?.(job);
  expect(await readFile(join(path, hit, 'damaged'), 'utf8')).toBe(`${hex}\n`);
  await expect(stat(join(path, spared, 'damaged'))).rejects.toThrow('ENOENT');
  await expect((await provider.archive(hit)).restoreVm?.()).rejects.toThrow(/is missing/);
});

test('the end of the host cleans up what it has begun', async () => {
  const storage = await makeStorage();
  const other = await openStorage(storage.path);
  await backUp(storage, [new MemoryVolume('drive-scsi0', patterned(512, 1))]);
  const files = await filesIn(storage.path);
  const startTime = new Date('2026-11-23T12:00:00Z');
  await storage.provider.backupVm?.({ vmid: 102, vmtype: 'qemu', startTime });
  storage.abort.abort();
  await storage.provider.close?.();
  const left = (await filesIn(storage.path)).filter((file) => !files.includes(file));
  expect(left.map((file) => basename(file))).toEqual(['sweep-wanted']);
  // The lock is free again.
  await other.provider.endJob?.();
  expect(await filesIn(storage.path)).toEqual(files);
});
