import fs, { mkdirSync, writeFileSync } from 'node:fs';
import { readFile, rename, symlink, writeFile } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, onTestFinished, test, vi } from 'vitest';
import definition from '../../../src/providers/directory/index.ts';
import { layoutOf, member } from '../../../src/providers/directory/layout.ts';
import { writeVerification } from '../../../src/providers/directory/verify-result.ts';
import { makeArchives } from './many-archives.ts';
import {
  listNames,
  makeLog,
  makeStorage,
  makeTemporary,
  type Opened,
  openStorage,
} from './setup.ts';

/** Until the times of a directory say for certain that nothing has changed since. */
const settle = () => sleep(2100);

/** How many archives `work` looks into. */
async function lookedInto(work: () => Promise<unknown>): Promise<number> {
  const { readdirSync } = fs;
  let count = 0;
  const restore = () => {
    fs.readdirSync = readdirSync;
    syncBuiltinESMExports();
  };
  onTestFinished(restore);
  fs.readdirSync = ((...args: Parameters<typeof readdirSync>) => {
    count++;
    return readdirSync(...args);
  }) as typeof readdirSync;
  syncBuiltinESMExports();
  await work();
  restore();
  return count;
}

const listOf = async ({ provider }: Opened) =>
  (await provider.listArchives({})).sort((a, b) => (a.name < b.name ? -1 : 1));

const upid = 'UPID:pve1:00000001:00000002:00000003:bridgeverify::root@pam:';

test('D5: what other processes add, change and remove is listed at once, and little else is read', async () => {
  const storage = await makeStorage();
  const { path } = storage;
  await storage.provider.setUp?.();
  const names = makeArchives(path, 8, 3);
  const newest = (vmid: number) => names.find((name) => name.startsWith(`${vmid}/`)) ?? '';
  await settle();
  expect(await lookedInto(() => listOf(storage))).toBe(24);
  expect(await lookedInto(() => listOf(storage))).toBe(0);

  const other = await openStorage(path);
  const archive = (vmid: number) => other.provider.archive(newest(vmid));
  await (await archive(100)).setNotes('changed');
  await (await archive(101)).setProtected(true);
  await (await archive(102)).setNotes('');
  await writeVerification(layoutOf(path), newest(103), upid, ['a fault']);
  await (await archive(104)).remove();
  makeArchives(path, 1, 1, 200);
  await rename(join(path, '105'), join(path, '205'));
  await rename(join(path, newest(106)), join(path, '106/not-an-archive'));

  // The guests 100 to 104, 106, 200 and 205, and of the last two none that is of another guest.
  let infos = await listOf(storage);
  expect(infos).toEqual(await listOf(await openStorage(path)));
  const info = (vmid: number) => infos.find(({ name }) => name === newest(vmid));
  expect(info(100)?.notes).toBe('changed');
  expect(info(101)?.protected).toBe(true);
  expect(info(102)).not.toHaveProperty('notes');
  expect(info(103)?.verification).toEqual({ state: 'failed', upid });
  for (const gone of [104, 105, 106]) expect(info(gone)).toBeUndefined();
  expect(infos.filter(({ vmid }) => vmid === 200)).toHaveLength(1);
  expect(infos.filter(({ vmid }) => vmid === 105)).toHaveLength(0);

  await settle();
  await listOf(storage);
  expect(await lookedInto(() => listOf(storage))).toBe(0);
  await (await archive(101)).setProtected(false);
  expect(await lookedInto(() => listOf(storage))).toBe(3);
  infos = await listOf(storage);
  expect(info(101)?.protected).toBe(false);
});

test('what has changed within the last two seconds is looked at again, whatever its times say', async () => {
  const storage = await makeStorage();
  const [name = ''] = makeArchives(storage.path, 1, 1);
  for (const notes of ['first', 'then']) {
    await writeFile(join(storage.path, name, member.notes), notes);
    expect(await listOf(storage)).toMatchObject([{ name, notes }]);
  }
});

test('one guest is listed without a look at the others', async () => {
  const storage = await makeStorage();
  makeArchives(storage.path, 5, 2);
  expect(await lookedInto(() => listNames(storage.provider, 103))).toBe(2);
  expect(await listNames(storage.provider, 103)).toHaveLength(2);
  expect(await listNames(storage.provider, 999)).toEqual([]);
});

test('a guest that is a link, a file or empty has no archives', async () => {
  const storage = await makeStorage();
  const { path } = storage;
  const [name = ''] = makeArchives(path, 1, 1);
  await symlink(join(path, '100'), join(path, '101'));
  writeFileSync(join(path, '102'), '');
  mkdirSync(join(path, '103'));
  expect(await listNames(storage.provider)).toEqual([name]);
  for (const vmid of [101, 102, 103]) expect(await listNames(storage.provider, vmid)).toEqual([]);
});

test('no more than so much is kept in memory; the rest is read each time', async () => {
  const storage = await makeStorage();
  const names = makeArchives(storage.path, 40, 1);
  const notes = 'x'.repeat(1024 * 1024);
  for (const name of names) writeFileSync(join(storage.path, name, member.notes), notes);
  await settle();
  expect(await listNames(storage.provider)).toHaveLength(40);
  const again = await lookedInto(() => listNames(storage.provider));
  expect(again).toBeGreaterThanOrEqual(8);
  expect(again).toBeLessThan(20);
});

test('a new process takes what has not changed from the cache on disk, if that is whole', async () => {
  const cacheDir = await makeTemporary();
  const open = (path: string) =>
    definition.open({
      id: 'store',
      options: { path },
      secrets: {},
      cluster: 'cluster one',
      log: makeLog(),
      runDir: cacheDir,
      cacheDir,
      signal: new AbortController().signal,
    });
  const { path } = await makeStorage();
  const names = makeArchives(path, 60, 10);
  await settle();
  const first = open(path);
  const infos = await first.listArchives({});
  expect(infos).toHaveLength(600);
  const file = join(cacheDir, 'archives');
  const content = await vi.waitFor(() => readFile(file));

  await (await first.archive(names[0] ?? '')).setNotes('changed');
  expect(await lookedInto(() => open(path).listArchives({}))).toBe(10);
  const changed = { ...infos.find(({ name }) => name === names[0]), notes: 'changed' };
  expect(await open(path).listArchives({})).toEqual(
    infos.map((info) => (info.name === changed.name ? changed : info)),
  );

  const cut = content.subarray(0, content.length / 2);
  const changedBytes = Buffer.from(content.toString().replace("day's", "day''"));
  for (const damaged of [cut, changedBytes, Buffer.of(), Buffer.from('[]\n[]')]) {
    await writeFile(file, damaged);
    expect(await lookedInto(() => open(path).listArchives({}))).toBe(600);
    await vi.waitFor(async () => expect(damaged.equals(await readFile(file))).toBe(false));
  }
});
