import { createHash } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { archivedSha256, strayFiles } from './support/store-reader.ts';
import {
  type SyntheticArchive,
  SyntheticGuest,
  SyntheticStore,
} from './support/synthetic-store.ts';

const device = 'drive-scsi0';
const MiB = 1024 * 1024;
const hour = 3600;

// Periods are those of local time.
process.env.TZ = 'UTC';

let store: SyntheticStore;

beforeEach(async () => {
  store = await SyntheticStore.create({ 'bridge-dir-compression': 'none' });
});

afterEach(() => store.close());

const at = (seconds: number) => new Date(Date.UTC(2026, 0, 1) + seconds * 1000);

/** `count` archives of a guest, an hour apart, each with one chunk that no other has. */
async function makeChain(guest: SyntheticGuest, count: number): Promise<SyntheticArchive[]> {
  const archives = [];
  for (let each = 0; each < count; each++) {
    guest.write(each % guest.chunks, guest.vmid * 1000 + each);
    archives.push(await guest.backUp(at(each * hour)));
  }
  return archives;
}

const prune = (...args: string[]) => store.node.pvesm(['prune-backups', 'vault', ...args]);

interface Marked {
  readonly volid: string;
  readonly mark: string;
}

async function marks(...args: string[]): Promise<Record<string, string>> {
  const { list } = await store.node.pvesmJson<{ list: Marked[] }>([
    ...['prune-backups', 'vault', '--dry-run', '1'],
    ...args,
  ]);
  return Object.fromEntries(list.map(({ volid, mark }) => [volid.slice(13), mark]));
}

test('of 30 incrementals three are kept, restore bit for bit, and the rest of the space is free', async () => {
  const guest = new SyntheticGuest(store, 100, [1, 2, 3, 4]);
  const archives = await makeChain(guest, 30);
  const before = await store.allocatedBytes();
  const { exitCode, all } = await prune('--keep-last', '3');
  expect(exitCode, all).toBe(0);
  const after = await store.allocatedBytes();
  console.log(`allocated: ${before} bytes before pruning, ${after} after`);
  const kept = archives.slice(-3);
  expect(await store.list()).toEqual(kept.map(({ name }) => name));
  for (const archive of kept) expect(await store.restores(archive)).toBe(true);
  // 3 base chunks and 30 written ones; the last three archives name 6 of them
  expect(before).toBeGreaterThan(33 * 4 * MiB);
  expect(before).toBeLessThan(34 * 4 * MiB);
  expect(after).toBeGreaterThan(6 * 4 * MiB);
  expect(after).toBeLessThan(7 * 4 * MiB);
  expect(await strayFiles(store.path, [100])).toEqual([]);
});

test('VMs that were cloned from one image share its chunks, and keep them', async () => {
  const image = [1, 2, 3, 4, 5, 6];
  const one = new SyntheticGuest(store, 100, image);
  const other = new SyntheticGuest(store, 101, image);
  const first = await one.backUp(at(0));
  const alone = await store.allocatedBytes();
  other.write(0, 77);
  const second = await other.backUp(at(1));
  expect((await store.allocatedBytes()) - alone).toBeLessThan(5 * MiB);
  const { exitCode, all } = await store.node.pvesm(['free', first.volid]);
  expect(exitCode, all).toBe(0);
  // the first chunk of the image went with the only archive that had it
  expect(await store.allocatedBytes()).toBeLessThan(alone + MiB);
  expect(await store.restores(second)).toBe(true);
});

describe('D9: prune-backups', () => {
  test('marks by guest and type, protected ones as such, and a dry run removes nothing', async () => {
    const one = await makeChain(new SyntheticGuest(store, 100, [1]), 4);
    const other = await makeChain(new SyntheticGuest(store, 101, [2]), 3);
    const [oldest] = one;
    await store.node.pvesm(['protected', oldest?.volid ?? '', '1']);
    const names = (archives: SyntheticArchive[]) => archives.map(({ name }) => name);
    const expected = (archives: SyntheticArchive[], ...of: string[]) =>
      Object.fromEntries(names(archives).map((name, index) => [name, of[index]]));
    const marked = {
      ...expected(one, 'protected', 'remove', 'keep', 'keep'),
      ...expected(other, 'remove', 'keep', 'keep'),
    };
    expect(await marks('--keep-last', '2')).toEqual(marked);
    expect(await marks('--keep-last', '2', '--vmid', '101')).toEqual(
      expected(other, 'remove', 'keep', 'keep'),
    );
    expect(await marks('--keep-last', '2', '--type', 'lxc')).toEqual({});
    expect(await marks('--keep-all', '1')).toEqual({
      ...expected(one, 'protected', 'keep', 'keep', 'keep'),
      ...expected(other, 'keep', 'keep', 'keep'),
    });
    expect(await store.list()).toHaveLength(7);
    const { exitCode, all } = await prune('--keep-last', '2', '--vmid', '100');
    expect(exitCode, all).toBe(0);
    expect(await store.list()).toEqual(names([...one, ...other].filter((a) => a !== one[1])));
  });

  test('without keep options those of the storage count, and without any it is refused', async () => {
    const { exitCode, all } = await prune();
    expect(exitCode).toBe(255);
    expect(all).toContain("no prune-backups options configured for storage 'vault'");
  });

  test.each([
    ['hourly', 3, 40 * 60, [2, 4, 5]],
    ['daily', 2, 10 * hour, [4, 5]],
    ['weekly', 2, 3 * 24 * hour, [3, 5]],
    ['monthly', 2, 14 * 24 * hour, [4, 5]],
    ['yearly', 2, 100 * 24 * hour, [3, 5]],
  ])('keep-%s=%d of six archives %d s apart', async (period, count, apart, kept) => {
    const guest = new SyntheticGuest(store, 100, [1]);
    for (let each = 0; each < 6; each++) await guest.backUp(at(each * apart));
    const marked = Object.values(await marks(`--keep-${period}`, String(count)));
    expect(marked.flatMap((mark, index) => (mark === 'keep' ? [index] : []))).toEqual(kept);
  });

  test('what cannot be removed is named after the rest was removed', async () => {
    const guest = new SyntheticGuest(store, 100, [1]);
    const archives = await makeChain(guest, 4);
    const [stuck] = archives;
    // something is in the way of the name that it would get
    await mkdir(`${store.path}/${stuck?.name}.removed`);
    await writeFile(`${store.path}/${stuck?.name}.removed/x`, '');
    const { exitCode, all = '' } = await prune('--keep-last', '1');
    expect(exitCode).toBe(255);
    expect(all).toContain(`error pruning backups: cannot remove ${stuck?.volid}`);
    expect(await store.list()).toEqual([stuck?.name, archives[3]?.name]);
    // which is out of the way now
    expect((await prune('--keep-last', '1')).exitCode).toBe(0);
    expect(await store.list()).toEqual([archives[3]?.name]);
    expect(await strayFiles(store.path, [100])).toEqual([]);
  });
});

describe('two at once', () => {
  test('prune against prune', async () => {
    const chains = [];
    for (const vmid of [100, 101]) {
      chains.push(await makeChain(new SyntheticGuest(store, vmid, [1, 2]), 8));
    }
    const results = await Promise.all([1, 2, 3].map(() => prune('--keep-last', '2')));
    for (const { exitCode, all } of results) expect(exitCode, all).toBe(0);
    const kept = chains.flatMap((chain) => chain.slice(-2));
    expect(await store.list()).toEqual(kept.map(({ name }) => name));
    for (const { name, sha256 } of kept) {
      expect(await archivedSha256(store.path, name, device)).toBe(sha256);
    }
    // one may have left its work to the next
    expect((await prune('--keep-last', '2')).exitCode).toBe(0);
    expect(await strayFiles(store.path, [100, 101])).toEqual([]);
  });

  test('backup against prune: the chunks that the backup found in the store are spared', async () => {
    const guest = new SyntheticGuest(store, 100, [1, 2, 3, 4]);
    const archives = await makeChain(guest, 6);
    // all that it reads is in the store, and nowhere but in archives that go
    const copy = new SyntheticGuest(store, 101, [100_000, 100_001, 2, 3]);
    let pruned: Awaited<ReturnType<typeof prune>> | undefined;
    let reads = 0;
    const made = await copy.backUp(at(50 * hour), async () => {
      if (++reads === 3) pruned = await prune('--keep-last', '1', '--vmid', '100');
    });
    expect(pruned?.exitCode, pruned?.all).toBe(0);
    expect(pruned?.all).toContain('backups or restores are running');
    const kept = [archives[5], made];
    expect(await store.list()).toEqual(kept.map((archive) => archive?.name));
    for (const archive of kept) {
      expect(await archivedSha256(store.path, archive?.name ?? '', device)).toBe(archive?.sha256);
    }
    const { exitCode } = await prune('--keep-last', '1');
    expect(exitCode).toBe(0);
    expect(await strayFiles(store.path, [100, 101])).toEqual([]);
    expect(await store.restores(made)).toBe(true);
  });

  test('restore against prune: what is being restored can be removed and is restored whole', async () => {
    const guest = new SyntheticGuest(store, 100, [1, 2, 3, 4]);
    const [first, , last] = await makeChain(guest, 3);
    if (first === undefined || last === undefined) throw new Error('no archives');
    const archive = await store.provider.archive(first.name);
    const opened = await archive.restoreVm?.();
    const image = await opened?.openVolume(device);
    const { exitCode, all } = await prune('--keep-last', '1');
    expect(exitCode, all).toBe(0);
    expect(await store.list()).toEqual([last.name]);
    const content = await image?.read(0, image.size);
    expect(
      createHash('sha256')
        .update(content ?? '')
        .digest('hex'),
    ).toBe(first.sha256);
    await opened?.close();
    await prune('--keep-last', '1');
    expect(await strayFiles(store.path, [100])).toEqual([]);
    expect(await store.restores(last)).toBe(true);
  });
});
