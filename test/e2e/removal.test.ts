import { access, readdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { leftAfterQuiet } from './support/leftovers.ts';
import { archivedSha256, strayFiles } from './support/store-reader.ts';
import {
  type SyntheticArchive,
  SyntheticGuest,
  SyntheticStore,
} from './support/synthetic-store.ts';

const device = 'drive-scsi0';

let store: SyntheticStore;
let guest: SyntheticGuest;
let first: SyntheticArchive;
let second: SyntheticArchive;

beforeEach(async () => {
  store = await SyntheticStore.create();
  guest = new SyntheticGuest(store, 100, [1, 2, 3]);
  first = await guest.backUp(new Date('2026-01-01T00:00:00Z'));
  guest.write(0, 4);
  second = await guest.backUp(new Date('2026-01-01T01:00:00Z'));
});

afterEach(() => store.close());

const freeing = {
  pvesm: (volid: string) => store.node.pvesm(['free', volid]),
  'pvesm -T': (volid: string) => store.node.pvesm(['free', volid], { taint: true }),
  'the API': (volid: string) => store.node.pvedaemonCall(['delete', volid]),
};

describe.each(Object.entries(freeing))('D7: removal by %s', (_, free) => {
  test('hides under the lock and frees the space in a worker of its own', async () => {
    await store.node.forgetCalls();
    const { exitCode, all = '' } = await free(first.volid);
    expect(exitCode, all).toBe(0);
    expect(all).toMatch(/^freed .* in 1 chunks$/m);
    // two workers: what holds the lock, and what frees the space
    expect(all.match(/^TASK OK$/gm)).toHaveLength(2);
    const call = (await store.node.calls()).find(({ call: name }) => name === 'storage.free_image');
    expect(call?.result).toMatch(/^returned CODE/);
    expect(await store.list()).toEqual([second.name]);
    expect(await strayFiles(store.path, [100])).toEqual([]);
    expect(await leftAfterQuiet(store.node.root)).toEqual([]);
    expect(await archivedSha256(store.path, second.name, device)).toBe(second.sha256);
  });

  test('of a protected archive is refused in one line', async () => {
    await (await store.provider.archive(first.name)).setProtected(true);
    const { exitCode, all = '' } = await free(first.volid);
    expect(exitCode).toBe(255);
    expect(all).toContain(
      `TASK ERROR: cannot remove protected archive 'backup/${first.name}' on 'vault'\n`,
    );
    expect(await store.list()).toEqual([first.name, second.name]);
  });
});

test('while the store is in use removal succeeds, says once that space follows, and it does', async () => {
  const archive = await store.provider.archive(second.name);
  const opened = await archive.restoreVm?.();
  // what a backup that died left waits as well
  await rename(join(store.path, first.name), join(store.path, `${first.name}.partial`));
  const { exitCode, all = '' } = await store.node.pvesm(['free', second.volid]);
  expect(exitCode, all).toBe(0);
  expect(all.match(/backups or restores are running/g)).toHaveLength(1);
  expect(await store.list()).toEqual([]);
  await opened?.close();
  const pruned = await store.node.pvesm(['prune-backups', 'vault', '--keep-last', '1']);
  expect(pruned.exitCode, pruned.all).toBe(0);
  expect(await strayFiles(store.path, [100])).toEqual([]);
  expect(await readdir(join(store.path, '100'))).toEqual([]);
});

test('notes and protection of an archive that is hidden bring nothing back', async () => {
  const archive = await store.provider.archive(first.name);
  await (await store.provider.archive(first.name)).remove();
  await expect(archive.setProtected(true)).rejects.toThrow(/cannot change archive/);
  await archive.remove();
  expect(await store.list()).toEqual([second.name]);
  await store.provider.reclaim?.();
  expect(await strayFiles(store.path, [100])).toEqual([]);
});

test('a store that was moved to another path keeps working', async () => {
  const path = `${store.path}.elsewhere`;
  await rename(store.path, path);
  await store.node.addStorage('moved', 'bridge-dir', { content: 'backup', path });
  const list = await store.node.pvesmJson<object[]>(['list', 'moved']);
  expect(list).toHaveLength(2);
  const restored = { ...second, volid: second.volid.replace('vault:', 'moved:') };
  expect(await store.restores(restored)).toBe(true);
  const { exitCode, all } = await store.node.pvesm(['prune-backups', 'moved', '--keep-last', '1']);
  expect(exitCode, all).toBe(0);
  expect(await strayFiles(path, [100])).toEqual([]);
  expect(await archivedSha256(path, second.name, device)).toBe(second.sha256);
});

test('another cluster can neither list nor prune what is not its own', async () => {
  const corosync = join(store.node.root, 'etc/pve/corosync.conf');
  await writeFile(corosync, 'totem {\n  cluster_name: stranger\n}\n');
  for (const args of [
    ['prune-backups', 'vault', '--keep-last', '1'],
    ['free', first.volid],
  ]) {
    const { exitCode, all } = await store.node.pvesm(args);
    expect(exitCode).toBe(255);
    expect(all).toContain('this is cluster stranger');
  }
  await access(join(store.path, first.name, 'archive.json'));
  expect(await archivedSha256(store.path, first.name, device)).toBe(first.sha256);
});
