import { readdir, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { openContainerTree } from '../../../src/toolbox/container-tree.ts';
import { ContainerCaller } from '../../toolbox/support/container-caller.ts';
import { backUpContainer, describeTree, never, restoreTree, run } from './containers.ts';
import { listNames, makeStorage, makeTemporary, type Opened, openStorage } from './setup.ts';

const script =
  'mkdir -m 700 sbin; echo init >sbin/init; chmod 4755 sbin/init; chown 5:7 sbin/init; ' +
  'mkdir tmp; echo x >tmp/x; mkfifo fifo; ln -s /outside link; head -c 3000000 /dev/urandom >data; ' +
  'truncate -s 20M sparse; touch -d 1960-01-01T00:00:00.123456789Z old';

/** A container in namespaces of its own, and how its root sees it. */
async function makeContainer() {
  const caller = new ContainerCaller();
  onTestFinished(() => caller.remove());
  caller.fill(script);
  const seen = await describeTree(caller.root);
  await caller.giveAway().start();
  return { caller, seen };
}

async function backUpCaller(storage: Opened, caller: ContainerCaller, vmid = 300) {
  const tree = await openContainerTree({
    caller: caller.identity,
    directory: caller.directory,
    sources: ['./'],
    userId: caller.userId,
    log: storage.log,
    signal: never,
  });
  try {
    return await backUpContainer(storage, tree, { vmid, exclude: ['/tmp/?*'] });
  } finally {
    await tree.close();
  }
}

/** The processes in the user namespace of this one. */
async function programsWith(pid: number): Promise<number[]> {
  const namespaceOf = (each: number) =>
    readlink(`/proc/${each}/ns/user`).catch(() => `that of ${each}, gone`);
  const wanted = await namespaceOf(pid);
  const pids = (await readdir('/proc')).map(Number).filter((each) => each > 0);
  const namespaces = await Promise.all(pids.map(namespaceOf));
  return pids.filter((_, position) => namespaces[position] === wanted);
}

test('A8: a container in its own namespaces comes back with the ids that it sees', async () => {
  const storage = await makeStorage();
  const { caller, seen } = await makeContainer();
  const { backup, archiveSize } = await backUpCaller(storage, caller);
  const content = await restoreTree(storage.provider, backup.archiveName);
  const wanted = seen.split('\n').filter((line) => !line.includes('tmp/x'));
  expect(content.split('\n')).toEqual(wanted);
  expect(archiveSize).toBeGreaterThan(3_000_000);
  expect(archiveSize).toBeLessThan(4_000_000);
});

test('a full store ends tar in the namespaces', async () => {
  const path = await makeTemporary();
  await run('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'x', path]);
  onTestFinished(async () => {
    await run('umount', [path]);
  });
  const storage = await openStorage(path);
  const { caller } = await makeContainer();
  await expect(backUpCaller(storage, caller)).rejects.toThrow(
    /cannot back up container 300: the store .* is full: remove or prune/,
  );
  expect(await listNames(storage.provider)).toEqual([]);
  expect(await readdir(join(path, '300'))).toEqual([]);
  expect(await programsWith(caller.identity.pid)).toEqual([caller.identity.pid]);
});
