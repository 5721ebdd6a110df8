import { execFileSync } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { checkTar, TarCheck } from '../../src/toolbox/tar-check.ts';
import { readTar } from '../../src/toolbox/tar-input.ts';
import { type TarMember, TarReader } from '../../src/toolbox/tar-reader.ts';
import { LogLines } from './support/log.ts';
import { makeTree, pveFlags } from './support/tar-tree.ts';

const { signal } = new AbortController();
const options = { log: new LogLines(), signal };
let directory: string;
let tree: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'tar-gnu-'));
  tree = makeTree(directory);
});
afterAll(async () => {
  await rm(directory, { recursive: true });
});

const old = ['--exclude=before-1970', '--exclude=sparse', '--exclude=long*'];
const formats: [name: string, flags: string[]][] = [
  ['as vzdump writes it', ['-S', ...pveFlags]],
  ['pax, not sparse', ['--format=pax', '--exclude=sparse']],
  ['pax, sparse 0.0', ['--format=pax', '-S', '--sparse-version=0.0']],
  ['pax, sparse 0.1', ['--format=pax', '-S', '--sparse-version=0.1']],
  ['pax, sparse 1.0', ['--format=pax', '-S', '--sparse-version=1.0']],
  ['gnu', ['--format=gnu', '--exclude=sparse']],
  ['gnu, sparse', ['--format=gnu', '-S']],
  ['oldgnu, sparse', ['--format=oldgnu', '-S']],
  ['ustar', ['--format=ustar', ...old]],
  ['v7', ['--format=v7', ...old, '--exclude=fifo', '--exclude=loop', '--exclude=*null']],
];

test.each(formats)('accepts what GNU tar writes and sees its names: %s', async (_name, flags) => {
  const path = join(directory, 'a.tar');
  execFileSync('tar', ['-cf', path, ...flags, '-C', tree, './'], { stdio: 'pipe' });
  const names: Buffer[] = [];
  const reader = new TarReader(path, {
    member: ({ name }: TarMember) => names.push(Buffer.from(name)),
    body: () => undefined,
  });
  for await (const chunk of readTar(path, { signal })) reader.push(chunk);
  reader.end();
  const theirs = execFileSync('tar', ['-tf', path, '--quoting-style=literal']);
  expect(Buffer.concat(names.flatMap((name) => [name, Buffer.from('\n')]))).toEqual(theirs);
  expect((await checkTar(path, options)).entries).toBe(names.length);
  // Every block that is missing is missed, down to the two zero blocks at the end.
  const archive = await readFile(path);
  let last = archive.length - 1;
  while (archive[last] === 0) last--;
  const end = Math.ceil((last + 1) / 512) * 512 + 512;
  const check = new TarCheck('a.tar');
  for (let at = 0; at < end; at += 512) {
    expect(() => check.end()).toThrow(/cut off|is empty/);
    check.push(archive.subarray(at, at + 512));
  }
  expect(() => check.end()).toThrow(/cut off/);
  check.push(archive.subarray(end));
  expect(check.end().entries).toBe(names.length);
});

test('9 GiB that are sparse take no time', async () => {
  const path = join(directory, 'large.tar');
  execFileSync('tar', ['-cf', path, '-S', ...pveFlags, '-C', tree, './']);
  const start = Date.now();
  await checkTar(path, options);
  expect(Date.now() - start).toBeLessThan(5000);
});
