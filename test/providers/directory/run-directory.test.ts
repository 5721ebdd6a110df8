import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { layoutOf } from '../../../src/providers/directory/layout.ts';
import { DirectoryProvider } from '../../../src/providers/directory/provider.ts';
import { RunDirectory } from '../../../src/providers/directory/run-directory.ts';
import {
  backUp,
  chunk,
  MemoryVolume,
  makeLog,
  makeStorage,
  makeTemporary,
  patterned,
} from './setup.ts';

const name = '100/qemu-2026-11-23T12:00:00Z';
const never = new AbortController().signal;

/** A run whose first sync, that of the commit, ends when it is told to; later ones at once. */
async function begin() {
  const layout = layoutOf(await makeTemporary());
  let endSync = () => {};
  const first = new Promise<void>((resolve) => {
    endSync = resolve;
  });
  let syncs = 0;
  const sync = async () => (syncs++ === 0 ? first : undefined);
  const directory = await RunDirectory.reserve(layout, name, sync);
  await writeFile(directory.path('archive.json'), '{}');
  const commit = directory
    .commit(never, () => {})
    .then(
      () => true,
      () => false,
    );
  return { directory, commit, endSync, guest: layout.guest(100) };
}

test('B12: the end of a backup during its commit leaves a whole archive or none', async () => {
  const outcomes = new Set<string>();
  for (let steps = -20; steps < 60; steps++) {
    const { directory, commit, endSync, guest } = await begin();
    const discard = () => directory.discard(commit, 100);
    const [before, after] = steps < 0 ? [discard, endSync] : [endSync, discard];
    const first = before();
    for (let step = 0; step < Math.abs(steps) % 20; step++) await null;
    for (let step = 20; step < steps; step += 20) await turn();
    await Promise.all([first, after()]);
    // Whatever it was that the end decided: nothing changes any more.
    const left = await readdir(guest);
    const committed = await commit;
    expect(await readdir(guest)).toEqual(left);
    expect(left).toEqual(committed ? ['qemu-2026-11-23T12:00:00Z'] : []);
    if (committed) expect(await readdir(join(guest, left[0] ?? ''))).toContain('archive.json');
    expect(directory.committed).toBe(committed);
    outcomes.add(committed ? 'committed' : 'discarded');
  }
  expect([...outcomes].sort()).toEqual(['committed', 'discarded']);
});

test('B12: nothing is committed after the end, however long the sync takes', async () => {
  const { directory, commit, endSync, guest } = await begin();
  await directory.discard(commit, 20);
  expect(await readdir(guest)).toEqual(['qemu-2026-11-23T12:00:00Z.partial']);
  endSync();
  expect(await commit).toBe(false);
  expect(await readdir(guest)).toEqual(['qemu-2026-11-23T12:00:00Z.partial']);
});

test('A3: after a cancel the end is quick though sync hangs; the next job does the rest', async () => {
  const { path, provider: next } = await makeStorage();
  const runDir = await makeTemporary();
  const storage = {
    id: 'store',
    options: { path },
    secrets: {},
    log: makeLog(),
    cluster: 'cluster one',
    runDir,
    cacheDir: runDir,
    signal: never,
  };
  const abort = new AbortController();
  const provider = new DirectoryProvider(storage, 'test', () => {
    abort.abort();
    return new Promise(() => {});
  });
  let ended = 0;
  const volume = new MemoryVolume('drive-scsi0', patterned(chunk, 1));
  const opened = { provider, path, runDir, log: storage.log, abort };
  abort.signal.addEventListener('abort', () => {
    ended = performance.now();
  });
  await expect(backUp(opened, [volume], { signal: abort.signal })).rejects.toThrow('cancelled');
  await provider.endJob();
  expect(performance.now() - ended).toBeLessThan(1500);
  const left = await readdir(join(path, '100'));
  expect(left).toEqual([expect.stringMatching(/\.partial$/)]);
  expect(await readdir(join(path, '.pve-backup-bridge'))).toContain('sweep-wanted');
  await next.startJob?.({ startTime: new Date() });
  expect(await readdir(join(path, '100'))).toEqual([]);
  expect(await readdir(join(path, '.pve-backup-bridge'))).not.toContain('sweep-wanted');
});
