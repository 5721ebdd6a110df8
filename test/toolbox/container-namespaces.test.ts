import { chmodSync, mkdirSync, readlinkSync, statSync, writeFileSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { describe, expect, test } from 'vitest';
import type { ContainerTree } from '../../src/sdk/provider.ts';
import { gidOffset, uidOffset } from './support/container-caller.ts';
import { container, listTar, openTree, readTar } from './support/container-tree.ts';

const kinds = [{ privileged: false }, { privileged: true }];

async function output(tree: ContainerTree, script: string): Promise<string> {
  const program = await tree.exec(['sh', '-c', script]);
  const result = await text(program.stdout);
  await program.exited;
  return result.trim();
}

describe('namespaces of a container', () => {
  test.each(kinds)('A8, A9: ids as the container sees them, $privileged', async (kind) => {
    const caller = container(kind).fill('echo x >file; chown 5:7 file; mkdir -m 700 secret');
    const tree = await openTree(await caller.giveAway().start());
    const { data } = await readTar(tree);
    const ids = listTar(data).map((line) => line.replace(/ +\d+ \d{4}-\S+ \S+ +/, ' '));
    expect(ids.sort()).toEqual([
      '-rw-r--r-- 5/7 ./file',
      'drwx------ 0/0 ./secret/',
      'drwxr-xr-x 0/0 ./',
    ]);
  });

  test.each(kinds)('A7: the mounts of the caller alone, $privileged', async (kind) => {
    const caller = container(kind).fill('mkdir given left').giveAway();
    await caller.start(
      `for m in given left; do mount -t tmpfs none "$2/$m"; echo $m >"$2/$m/file"; done`,
    );
    const tree = await openTree(caller, { sources: ['./', './given'] });
    const { data } = await readTar(tree);
    const names = listTar(data).map((line) => line.replace(/.* /, ''));
    expect(names).toContain('./given/file');
    expect(names).not.toContain('./left/file');
    expect(await output(tree, 'cat given/file left/file')).toBe('given\nleft');
  });

  test.each(kinds)('nothing of ours gets in, $privileged', async (kind) => {
    const tree = await openTree(await container(kind).giveAway().start());
    process.env.SECRET_OF_TEST = 'x';
    expect((await output(tree, 'env')).split('\n').sort()).toEqual([
      'LANG=C.UTF-8',
      'PATH=/usr/sbin:/usr/bin:/sbin:/bin',
      `PWD=${tree.directory}`,
    ]);
    expect(await output(tree, 'ls /proc/$$/fd')).toBe('0\n1\n2');
    expect(await output(tree, 'echo $(id -u) $(id -g) $(id -G)')).toBe('0 0 0');
    const inside = await output(tree, 'readlink /proc/self/ns/user /proc/self/ns/mnt');
    const own = ['user', 'mnt'].map((name) => readlinkSync(`/proc/self/ns/${name}`));
    const differs = inside.split('\n').map((link, at) => link !== own[at]);
    expect(differs).toEqual([!kind.privileged, true]);
  });

  test('A8: what only the root of the host may read stays closed', async () => {
    const caller = container();
    const secrets = `${caller.base}/secrets`;
    mkdirSync(secrets, { mode: 0o700 });
    writeFileSync(`${secrets}/token`, 'x');
    writeFileSync(`${caller.base}/token`, 'x', { mode: 0o600 });
    const tree = await openTree(await caller.giveAway().start());
    expect(await output(tree, `cat ${caller.base}/token 2>&1 || true`)).toMatch(/denied/);
    expect(await output(tree, `cat ${secrets}/token 2>&1 || true`)).toMatch(/denied/);
    chmodSync(`${caller.base}/token`, 0o644);
    expect(await output(tree, `cat ${caller.base}/token`)).toBe('x');
    expect(await output(tree, `stat -c '%u %g' ${caller.directory}`)).toBe('0 0');
    const { uid, gid } = statSync(caller.root);
    expect([uid, gid]).toEqual([uidOffset, gidOffset]);
  });

  test('only of the very process that called', async () => {
    const caller = await container().giveAway().start();
    const { pid, startTime } = caller.identity;
    const other = { pid, startTime: startTime - 1 };
    await expect(openTree(caller, { caller: other })).rejects.toThrow('has ended');
    await caller.kill();
    await expect(openTree(caller)).rejects.toThrow(`process ${pid}, which asked`);
  });

  test('A10: they stay when the caller is killed', async () => {
    const caller = container().fill('echo hello >file').giveAway();
    const tree = await openTree(await caller.start());
    await caller.kill();
    const { totals } = await readTar(tree);
    expect(totals.entries).toBe(2);
  });
});
