import { execFile } from 'node:child_process';
import { readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { ChunkSink } from '../../../src/providers/directory/chunk-sink.ts';
import { ChunkStore } from '../../../src/providers/directory/chunk-store.ts';
import { DiskIndex } from '../../../src/providers/directory/disk-index.ts';
import { layoutOf } from '../../../src/providers/directory/layout.ts';
import { openNbdImage } from '../../../src/providers/directory/nbd-image.ts';
import { Store } from '../../../src/providers/directory/store.ts';
import {
  backUp,
  chunk,
  MemoryVolume,
  makeLog,
  makeStorage,
  makeTemporary,
  patterned,
} from './setup.ts';

const { signal } = new AbortController();
const disks = () => [new MemoryVolume('drive-scsi0', patterned(512, 1))];

test('a part of a chunk that comes too late is not stored', async () => {
  const path = await makeTemporary();
  const chunks = new ChunkStore(layoutOf(path), 'none');
  const sink = new ChunkSink('drive-scsi0', chunk, chunks, new DiskIndex(chunk));
  const abort = new AbortController();
  const write = sink.write(0, patterned(512, 1), abort.signal);
  abort.abort();
  await expect(write).rejects.toThrow(/aborted/);
  expect(await readdir(path)).toEqual([]);
});

test('a link that is planted in an archive is not followed', async () => {
  const storage = await makeStorage();
  const target = join(await makeTemporary(), 'target');
  await writeFile(target, 'untouched');
  const startTime = new Date('2026-11-23T12:00:00Z');
  const archive = join(storage.path, '100/qemu-2026-11-23T12:00:00Z');
  for (const file of ['guest.conf', 'drive-scsi0.index', 'archive.json']) {
    let planted: Promise<void> | undefined;
    const planned = () => {
      planted = symlink(target, join(`${archive}.partial`, file));
    };
    const volume = new MemoryVolume('drive-scsi0', patterned(512, 1));
    await expect(backUp(storage, [volume], { startTime, planned })).rejects.toThrow(/EEXIST/);
    await planted;
  }
  const { backup } = await backUp(storage, disks(), { startTime });
  await symlink(target, join(archive, 'backup.log'));
  await expect(backup.handleLogFile?.(target)).rejects.toThrow(/ELOOP/);
  expect(await readFile(target, 'utf8')).toBe('untouched');
});

test('the socket of an image is gone as soon as the connection stands', async () => {
  const directory = await makeTemporary();
  const image = join(directory, 'image.qcow2');
  await promisify(execFile)('qemu-img', ['create', '-q', '-f', 'qcow2', image, '1M']);
  const runDir = await makeTemporary();
  const opened = await openNbdImage(image, 1024 * 1024, runDir, signal);
  expect(await readdir(runDir)).toEqual([]);
  expect(await opened.read(0, 512)).toHaveLength(512);
  await opened.close();
});

test('a sweep is waited for no longer than the caller wants', async () => {
  const { path, provider } = await makeStorage();
  await provider.startJob?.({ startTime: new Date() });
  const store = new Store({
    path,
    compression: 'none',
    user: { cluster: 'cluster one', sharedWith: undefined },
    sync: async () => {},
    log: makeLog(),
    runDir: path,
    cacheDir: path,
    signal,
  });
  const lock = await store.claim();
  await expect(store.share(100)).rejects.toThrow(/still locked/);
  await lock?.release();
  const shared = await store.share(100);
  await shared.release();
});
