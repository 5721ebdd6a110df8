import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { lstatSync } from 'node:fs';
import { link, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { hideDevices } from '../../src/toolbox/device-overlay.ts';
import { collectStaleRestores } from '../../src/toolbox/stale-restores.ts';
import { withoutDevices } from '../../src/toolbox/tar-filter.ts';
import { LogLines } from './support/log.ts';
import { makeTree, pveFlags } from './support/tar-tree.ts';

const { signal } = new AbortController();
let directory: string;
let tree: string;
let image: string;
let mounts: string;
let log: LogLines;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'device-overlay-'));
  mounts = join(directory, 'mounts');
  tree = makeTree(directory);
  // What a container's own root may have made.
  const odd =
    'mknod "$(printf "etc/n\\nl\\377 ")" c 5 1; mkdir dev/sub; mknod dev/sub/full c 1 7; mknod whiteout c 0 0';
  execFileSync('bash', ['-c', odd], { cwd: tree });
  image = join(directory, 'image');
  const file = join(directory, 'image.sqfs');
  const flags = ['-comp', 'zstd', '-quiet', '-no-progress', '-e', 'sparse'];
  execFileSync('mksquashfs', [tree, file, ...flags]);
  await mkdir(image);
  execFileSync('mount', ['-o', 'loop,ro', file, image]);
});
beforeEach(() => {
  log = new LogLines();
});
afterAll(async () => {
  // After a failed test as well.
  for (const line of (await mountsBelow(directory)).reverse()) {
    execFileSync('umount', ['--lazy', line.split(' ')[4] ?? '']);
  }
  await rm(directory, { recursive: true });
});

/** As PVE does. */
function pack(source: string, name: string): string {
  const file = join(directory, name);
  const flags = pveFlags.filter((flag) => flag !== '--one-file-system');
  // Sparse files get names with a process id.
  const excludes = ['sparse', 'holes', 'h*le'].map((name) => `--exclude=${name}`);
  execFileSync('tar', [
    'cpf',
    file,
    ...flags,
    '--sparse',
    ...excludes,
    `--directory=${source}`,
    '.',
  ]);
  return file;
}

const digest = async (file: string) =>
  createHash('sha256')
    .update(await readFile(file))
    .digest('hex');
const mountsBelow = async (path: string) =>
  (await readFile('/proc/self/mountinfo', 'latin1'))
    .split('\n')
    .filter((line) => line.includes(path));

describe('hiding device nodes', () => {
  // With xattrs, capabilities and ACLs, which squashfs has not everywhere.
  test.each(['ext4', 'squashfs'])('%s: tar reads the same but for device nodes', async (type) => {
    const source = type === 'squashfs' ? image : tree;
    const view = await hideDevices(source, { mounts, log, signal });
    expect(view.path).not.toBe(source);
    const wanted = join(directory, `wanted-${type}.tar`);
    await withoutDevices(pack(source, 'original.tar'), `${wanted}.zst`, { log, signal });
    execFileSync('zstd', ['-d', '-q', `${wanted}.zst`]);
    const found = pack(view.path, 'view.tar');
    expect(await digest(found)).toBe(await digest(wanted));
    const names = execFileSync('tar', ['-tf', found], { encoding: 'utf8' });
    expect(names).toContain('./dev/sub/full');
    expect(names).toContain('./whiteout');
    expect(names).not.toMatch(/null$(?<!dev.null)|loop|etc.n.nl/m);
    expect(log.lines.join()).toMatch(/"null".*"usr\/lib\/loop"|"usr\/lib\/loop".*"null"/);
    await view.close();
    await view.close();
    expect(await mountsBelow(mounts)).toEqual([]);
    expect(await readdir(join(mounts, 'trees'))).toEqual([]);
    // Nothing covers the original.
    execFileSync('test', ['-c', join(source, 'null')]);
  });

  test('a file system mounted within the tree is there too', async () => {
    const inner = join(tree, 'empty');
    execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', inner]);
    try {
      await writeFile(join(inner, 'file'), 'x');
      execFileSync('mknod', [join(inner, 'node'), 'b', '7', '1']);
      const view = await hideDevices(tree, { mounts, log, signal });
      expect(await readFile(join(view.path, 'empty/file'), 'utf8')).toBe('x');
      expect(() => execFileSync('test', ['-S', join(view.path, 'empty/node')])).not.toThrow();
      expect(() => execFileSync('test', ['-b', join(inner, 'node')])).not.toThrow();
      await view.close();
      expect(await mountsBelow(mounts)).toEqual([]);
    } finally {
      execFileSync('umount', [inner]);
    }
  });

  test('a tree without them is given as it is', async () => {
    const plain = join(directory, 'plain');
    await mkdir(join(plain, 'dev'), { recursive: true });
    execFileSync('mknod', [join(plain, 'dev/null'), 'c', '1', '3']);
    execFileSync('mknod', [join(plain, 'whiteout'), 'c', '0', '0']);
    const view = await hideDevices(plain, { mounts, log, signal });
    await view.close();
    expect([view.path, log.lines]).toEqual([plain, []]);
  });

  test('what a killed process left is removed', async () => {
    const left = join(mounts, 'trees', '4194305-5-1');
    await mkdir(join(left, 'm'), { recursive: true });
    execFileSync('mount', ['--rbind', '--make-rprivate', image, join(left, 'm')]);
    await writeFile(join(left, 's'), '');
    execFileSync('mount', ['--bind', join(left, 's'), join(left, 'm/null')]);
    await collectStaleRestores({ mounts, scratch: join(directory, 'scratch'), log });
    expect(await mountsBelow(mounts)).toEqual([]);
    expect(await readdir(join(mounts, 'trees'))).toEqual([]);
  });

  test('as many as may be are hidden, and shown again at once', async () => {
    const many = join(directory, 'a thousand');
    await mkdir(many);
    const nodes = 'for n in {1..1000}; do echo "n$n c 1 3"; done | xargs -n 4 mknod';
    execFileSync('bash', ['-c', nodes], { cwd: many });
    const view = await hideDevices(many, { mounts, log, signal });
    const all = Array.from({ length: 1000 }, (_, n) => lstatSync(join(view.path, `n${n + 1}`)));
    expect(all.every((node) => node.isSocket())).toBe(true);
    const start = Date.now();
    await view.close();
    expect(Date.now() - start).toBeLessThan(3000);
    expect(await mountsBelow(mounts)).toEqual([]);
    expect(await readdir(join(mounts, 'trees'))).toEqual([]);
    expect(execFileSync('find', [many, '-type', 'c', '-printf', '.'])).toHaveLength(1000);
  });

  test('cancelled, and too many: nothing stays mounted', async () => {
    const aborted = AbortSignal.abort();
    await expect(hideDevices(image, { mounts, log, signal: aborted })).rejects.toThrow('cancelled');
    const many = join(directory, 'many');
    await mkdir(many);
    execFileSync('mknod', [join(many, 'n'), 'c', '1', '3']);
    for (let n = 0; n < 1000; n++) await link(join(many, 'n'), join(many, `n${n}`));
    await expect(hideDevices(many, { mounts, log, signal })).rejects.toThrow(/1001 device nodes/);
    expect(await mountsBelow(mounts)).toEqual([]);
  });
});
