import { execFileSync } from 'node:child_process';
import { buffer } from 'node:stream/consumers';
import { afterEach, describe, expect, test } from 'vitest';
import type { ContainerTree } from '../../src/sdk/provider.ts';
import { type ContainerTreeOptions, openContainerTree } from '../../src/toolbox/container-tree.ts';
import { ContainerCaller } from './support/container-caller.ts';
import { LogLines } from './support/log.ts';

const releases: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const release of releases.splice(0).reverse()) await release();
});

function container(options?: { privileged?: boolean }): ContainerCaller {
  const caller = new ContainerCaller(options);
  releases.push(() => caller.remove());
  return caller;
}

async function openTree(caller: ContainerCaller, options: Partial<ContainerTreeOptions> = {}) {
  const tree = await openContainerTree({
    caller: caller.identity,
    directory: caller.directory,
    sources: ['./'],
    userId: caller.userId,
    log: new LogLines(),
    signal: new AbortController().signal,
    ...options,
  });
  releases.push(() => tree.close());
  return tree;
}

const list = (tar: Buffer) =>
  execFileSync('tar', ['-tvf', '-', '--numeric-owner'], { input: tar, encoding: 'utf8' });

async function read(tree: ContainerTree, options?: Parameters<ContainerTree['tar']>[0]) {
  const { stream, done } = await tree.tar(options);
  const data = await buffer(stream);
  return { data, totals: await done };
}

describe('tar of a container', () => {
  test.each([{ privileged: false }, { privileged: true }])('attributes %o', async (kind) => {
    const caller = container(kind).fill(
      'mkdir -m 700 etc; echo hello >etc/passwd; chown 5:7 etc/passwd',
    );
    await caller
      .giveAway()
      .start('mkdir "$2/inside"; mount -t tmpfs none "$2/inside"; echo x >"$2/inside/y"');
    const tree = await openTree(caller, { sources: ['./', './inside'] });
    const { data, totals } = await read(tree);
    const zst = await read(tree, { through: ['zstd', '-T0'] });
    expect(totals.bytes).toBe(data.length);
  });
});
