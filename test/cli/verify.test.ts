import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import {
  backUp,
  chunkFiles,
  listNames,
  MemoryVolume,
  makeStorage,
  makeTemporary,
  type Opened,
  patterned,
  restore,
} from '../providers/directory/setup.ts';
import { flipBit, states } from '../providers/directory/verify-support.ts';
import { makeNodeRoot, runCli } from './node-root.ts';

const size = 256 * 1024;
const backUpOf = async (storage: Opened, seed: number, vmid = 100) =>
  (await backUp(storage, [new MemoryVolume('drive-scsi0', patterned(size, seed))], { vmid })).backup
    .archiveName;
const linesOf = (text: string) => text.split('\n').filter((line) => line !== '');

test('all is good: exit status 0, and the list says so', async () => {
  const storage = await makeStorage();
  const names = [await backUpOf(storage, 1), await backUpOf(storage, 2, 101)];
  const root = await makeNodeRoot({ vault: storage.path });
  const { status, stdout, stderr } = await runCli(['verify', 'vault', '--root', root]);
  expect([status, stderr]).toEqual([0, '']);
  expect(linesOf(stdout).at(-1)).toBe('2 archives verified, 0 of them damaged');
  expect(await states(storage.provider)).toEqual(Object.fromEntries(names.map((n) => [n, 'ok'])));
  const [info] = await storage.provider.listArchives({});
  // What PVE's web interface takes apart.
  expect(info?.verification?.upid).toMatch(
    /^UPID:[^\s:]+:[0-9A-F]{8}:[0-9A-F]{8,9}:[0-9A-F]{8}:verify:vault:root@pam:$/,
  );
});

test('a fault: exit status 1, archive and chunk are named, also as JSON', async () => {
  const storage = await makeStorage();
  const good = await backUpOf(storage, 1);
  const before = new Set(await chunkFiles(storage.path));
  const bad = await backUpOf(storage, 2, 101);
  const chunk = (await chunkFiles(storage.path)).find((file) => !before.has(file)) ?? '';
  const [hex = ''] = /[0-9a-f]{64}/.exec(chunk) ?? [];
  await flipBit(chunk);
  const root = await makeNodeRoot({ vault: storage.path });
  const first = await runCli(['verify', 'vault', '--root', root, '--json']);
  expect(first.status).toBe(1);
  expect(JSON.parse(first.stdout)).toEqual([
    { volid: `vault:backup/${good}`, state: 'ok', problems: [] },
    {
      volid: `vault:backup/${bad}`,
      state: 'failed',
      problems: [`drive-scsi0: chunk ${hex} at byte 0 is damaged`],
    },
  ]);
  expect(first.stderr).toContain(`ERROR: backup/${bad}: drive-scsi0: chunk ${hex}`);
  for (const name of [bad, `backup/${bad}`, `vault:backup/${bad}`]) {
    const one = await runCli(['verify', 'vault', name, '--root', root]);
    expect([one.status, linesOf(one.stdout).at(-1)]).toEqual([
      1,
      '1 archives verified, 1 of them damaged',
    ]);
  }
  expect((await runCli(['verify', 'vault', good, '--root', root])).status).toBe(0);
});

test('what cannot be verified does not fail the others', async () => {
  const storage = await makeStorage();
  const name = await backUpOf(storage, 1);
  const example = '100/qemu-1700000000';
  await mkdir(join(storage.path, example));
  await writeFile(join(storage.path, example, 'guest.conf'), 'name: example\n');
  const root = await makeNodeRoot({ vault: storage.path });
  const all = await runCli(['verify', 'vault', '--root', root, '--json']);
  expect(all.status).toBe(0);
  expect(JSON.parse(all.stdout)).toMatchObject([{ volid: `vault:backup/${name}`, state: 'ok' }]);
  expect(all.stderr).toContain(`backup/${example} cannot be verified`);
  const one = await runCli(['verify', 'vault', example, '--root', root]);
  expect(one.status).toBe(2);
  expect(one.stderr).toMatch(/cannot be verified: it was kept without checksums/);
});

test('exit status 2 where it cannot run, with one line and the usage where it helps', async () => {
  const root = await makeNodeRoot({ vault: '/nowhere/at/all' });
  const cases: [string[], RegExp][] = [
    [['verify', 'vault', '--root', root], /directory \/nowhere\/at\/all does not exist/],
    [['verify', 'gone', '--root', root], /there is no storage 'gone'/],
    [['verify', 'local', '--root', root], /is of type 'dir', which is none of/],
    [['verify', 'vault', '--root', await makeTemporary()], /cannot read .*storage.cfg/],
    [['verify', 'vault', '../../etc/passwd', '--root', root], /is no name of an archive/],
    [['verify', 'vault', 'one', 'two'], /one archive at a time/],
    [['verify', 'vault', '--frobnicate'], /frobnicate/],
    [['verify'], /no storage was named\nusage: /],
    [['frobnicate'], /no command 'frobnicate'\nusage: /],
    [[], /no command was named\nusage: /],
  ];
  for (const [args, message] of cases) {
    const { status, stdout, stderr } = await runCli(args);
    expect([args, status, stdout]).toEqual([args, 2, '']);
    expect(stderr).toMatch(message);
  }
  for (const args of [['--help'], ['verify', '--help']]) {
    const { status, stdout } = await runCli(args);
    expect([status, stdout]).toEqual([0, expect.stringMatching(/^usage: pve-backup-bridge/)]);
  }
});

test('a signal ends it in order', async () => {
  const storage = await makeStorage();
  for (let seed = 0; seed < 12; seed++) await backUpOf(storage, seed);
  const root = await makeNodeRoot({ vault: storage.path });
  const args = ['verify', 'vault', '--root', root];
  const { status, stderr } = await runCli(args, { signal: 'SIGTERM' });
  expect([status, stderr]).toEqual([2, 'pve-backup-bridge: cancelled\n']);
  expect(Object.values(await states(storage.provider))).not.toContain('failed');
});

test('verify beside backup, removal and reclaim: no fault, no deadlock, no damage', async () => {
  const storage = await makeStorage();
  const { provider } = storage;
  const root = await makeNodeRoot({ vault: storage.path });
  for (let seed = 0; seed < 10; seed++) await backUpOf(storage, seed);
  let done = false;
  const verifying = ['one', 'two'].map(async () => {
    const found = [];
    while (!done) found.push(await runCli(['verify', 'vault', '--root', root, '--json']));
    return found;
  });
  const kept: [string, number][] = [];
  for (let seed = 10; seed < 22; seed++) {
    kept.push([await backUpOf(storage, seed), seed]);
    const [oldest = ''] = (await listNames(provider)).filter((each) => each !== kept.at(-1)?.[0]);
    await (await provider.archive(oldest)).remove();
    const gone = kept.findIndex(([name]) => name === oldest);
    if (gone >= 0) kept.splice(gone, 1);
    await provider.reclaim?.();
  }
  done = true;
  for (const { status, stdout, stderr } of (await Promise.all(verifying)).flat()) {
    expect([status, stderr]).toEqual([0, expect.not.stringContaining('ERROR')]);
    expect(JSON.parse(stdout).length).toBeGreaterThan(0);
  }
  for (const [name, seed] of kept) {
    expect((await restore(provider, name, 'drive-scsi0')).equals(patterned(size, seed))).toBe(true);
  }
  await provider.reclaim?.();
  expect(await chunkFiles(storage.path)).toHaveLength((await listNames(provider)).length);
  expect(await readdir(join(storage.path, '.pve-backup-bridge'))).not.toContain('damaged');
});
