import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { processStartTime } from '../../src/toolbox/processes.ts';
import { collectStaleRestores } from '../../src/toolbox/stale-restores.ts';
import { checkTar } from '../../src/toolbox/tar-check.ts';
import { withoutDevices } from '../../src/toolbox/tar-filter.ts';
import { prepareTar } from '../../src/toolbox/tar-prepare.ts';
import { LogLines } from './support/log.ts';
import { container, member } from './support/tar-archive.ts';
import { makeTree, pveFlags } from './support/tar-tree.ts';

const { signal } = new AbortController();
const devices = ['./null', './hard-null', './usr/lib/loop'];
let directory: string;
let scratch: string;
let tree: string;
let log: LogLines;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'tar-prepare-'));
  scratch = join(directory, 'scratch');
  tree = makeTree(directory);
});
beforeEach(() => {
  log = new LogLines();
});
afterEach(() => rm(scratch, { recursive: true, force: true }));
afterAll(() => rm(directory, { recursive: true }));

function pack(name: string, ...flags: string[]): string {
  const path = join(directory, name);
  // Attributes belong to the pax format.
  const attributes = flags.includes('--format=gnu') ? ['--numeric-owner'] : pveFlags;
  execFileSync('tar', ['-caf', path, '-S', ...attributes, ...flags, '-C', tree, './'], {
    stdio: 'pipe',
  });
  return path;
}

function listed(path: string): string[] {
  const lines = execFileSync('tar', ['-tvf', path, '--numeric-owner', '--full-time'], {
    encoding: 'latin1',
  });
  return lines.trimEnd().split('\n');
}

/** A digest of all that tar knows of a tree, in the order of names. */
async function digest(path: string, ...flags: string[]): Promise<string> {
  const target = join(directory, 'extracted');
  await mkdir(target);
  try {
    execFileSync('tar', ['-xf', path, '-S', ...pveFlags, '-C', target, ...flags]);
    const fixed = ['--sort=name', '--format=pax', '--sparse-version=0.0'];
    const times = ['--pax-option=delete=atime,delete=ctime', '--exclude=./usr/lib'];
    const again = ['-S', ...pveFlags, ...fixed, ...times, ...flags, '-C', target, './'];
    const hash = createHash('sha256');
    const file = join(directory, 'again.tar');
    execFileSync('tar', ['-cf', file, ...again], { stdio: 'pipe' });
    return hash.update(await readFile(file)).digest('hex');
  } finally {
    await rm(target, { recursive: true });
  }
}

describe('an archive with device nodes outside ./dev', () => {
  const archives: [name: string, flags: string[]][] = [
    ['pax.tar', []],
    ['pax.tar.zst', []],
    ['pax.tar.gz', []],
    ['gnu.tar', ['--format=gnu']],
    ['sparse-0.1.tar', ['--format=pax', '--sparse-version=0.1']],
  ];
  test.each(archives)('%s: a copy with all but them', async (name, flags) => {
    const path = pack(name, ...flags);
    const before = await readFile(path);
    const prepared = await prepareTar(path, { scratch, log, signal });
    expect(prepared.path).not.toBe(path);
    expect(prepared.path.endsWith('.tar.zst')).toBe(true);
    for (const device of devices) expect(log.lines.join('\n')).toContain(`"${device}"`);
    // The one of the two hard links that tar met first is the device node.
    const gone = listed(path).filter((line) =>
      / (\.\/null|\.\/hard-null|\.\/usr\/lib\/loop)( |$)/.test(line),
    );
    expect(gone).toHaveLength(3);
    expect(listed(prepared.path)).toEqual(listed(path).filter((line) => !gone.includes(line)));
    const left = devices.map((device) => `--exclude=${device}`);
    expect(await digest(prepared.path)).toBe(await digest(path, '--anchored', ...left));
    expect(await checkTar(prepared.path, { log, signal })).toMatchObject({ deviceCount: 0 });
    await prepared.close();
    await prepared.close();
    expect(await readdir(scratch)).toEqual([]);
    expect((await readFile(path)).equals(before)).toBe(true);
  });

  test('every byte of the other members stays', async () => {
    const device = (name: string) => member({ name, type: '3' });
    const link = member({ name: './l', type: '1', linkName: './loop' });
    const others = [device('./dev/null'), member({ name: './x' }, 'data')];
    const path = join(directory, 'hand.tar');
    await writeFile(path, container(device('./loop'), ...others, link, device('./a/loop')));
    const prepared = await prepareTar(path, { scratch, log, signal });
    const copy = execFileSync('zstd', ['-dc', prepared.path]);
    const wanted = container(...others);
    expect(copy.subarray(0, wanted.length).equals(wanted)).toBe(true);
    expect(copy.subarray(wanted.length).every((byte) => byte === 0)).toBe(true);
    expect(copy.length % 10240).toBe(0);
    await prepared.close();
  });

  test('many are named up to a number', async () => {
    const path = join(directory, 'many.tar');
    const many = Array.from({ length: 25 }, (_, at) => member({ name: `./n${at}`, type: '4' }));
    await writeFile(path, container(...many));
    await (await prepareTar(path, { scratch, log, signal })).close();
    expect(log.lines.join()).toMatch(/"\.\/n9" and 15 more$/);
  });
});

test('an archive without them is given as it is', async () => {
  const path = join(directory, 'plain.tar');
  await writeFile(path, container(member({ name: './dev/null', type: '3' })));
  const prepared = await prepareTar(path, { scratch, log, signal });
  await prepared.close();
  expect([prepared.path, log.lines]).toEqual([path, []]);
  expect(await readFile(path)).toHaveLength(container().length + 512);
});

test('C7: what is not as it was backed up is refused', async () => {
  const path = join(directory, 'hashed.tar');
  const archive = container(member({ name: './n', type: '3' }), member({ name: './x' }, 'data'));
  await writeFile(path, archive);
  const sha256 = createHash('sha256').update(archive).digest('hex');
  await (await prepareTar(path, { scratch, log, signal, sha256 })).close();
  await writeFile(path, Buffer.from(archive.toString('latin1').replace('data', 'Data'), 'latin1'));
  await (await prepareTar(path, { scratch, log, signal })).close();
  await expect(prepareTar(path, { scratch, log, signal, sha256 })).rejects.toThrow(/is damaged/);
  expect(await readdir(scratch)).toEqual([]);
});

test('a refused archive leaves nothing', async () => {
  const path = join(directory, 'bad.tar');
  await writeFile(path, container(member({ name: './n', type: '3' }), member({ name: '../n' })));
  await expect(prepareTar(path, { scratch, log, signal })).rejects.toThrow(/climbs out/);
  expect(await readdir(scratch).catch(() => [])).toEqual([]);
});

test('copies of dead processes are removed, no others', async () => {
  await mkdir(scratch);
  const startTime = await processStartTime(process.pid);
  const living = `${process.pid}-${startTime}-999.tar.zst`;
  for (const name of [`${process.pid}-1-1.tar.zst`, '4194305-5-2.tar.zst', living, 'other.tar']) {
    await writeFile(join(scratch, name), '');
  }
  await collectStaleRestores({ mounts: join(directory, 'mounts'), scratch, log });
  expect((await readdir(scratch)).sort()).toEqual([living, 'other.tar'].sort());
});

describe('a copy that fails', () => {
  /** Makes the scratch directory a small file system, and tries. */
  async function prepareWithin(size: string, path: string): Promise<unknown> {
    await mkdir(scratch, { recursive: true });
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', scratch]);
    try {
      return await prepareTar(path, { scratch, log, signal }).then(
        ({ close }) => close(),
        (error: unknown) => error,
      );
    } finally {
      expect(await readdir(scratch)).toEqual([]);
      execFileSync('umount', [scratch]);
    }
  }

  const withDevice = (body: Buffer) =>
    container(member({ name: './n', type: '3' }), member({ name: './x' }, body));

  test('that may not fit is not begun', async () => {
    const path = join(directory, 'zeroes.tar');
    await writeFile(path, withDevice(Buffer.alloc(980 * 1024)));
    // With a twentieth to spare; compressed the copy is much smaller.
    expect(String(await prepareWithin('1M', path))).toMatch(/no space for a copy/);
    expect(await prepareWithin('1100k', path)).toBeUndefined();
    execFileSync('zstd', ['-q', path]);
    expect(await prepareWithin('64k', `${path}.zst`)).toBeUndefined();
  });

  test('that needs more space than its archive', async () => {
    const plain = join(directory, 'repeated.tar');
    const noise = randomBytes(2 << 20);
    // Too far apart for a fast zstd.
    await writeFile(plain, withDevice(Buffer.concat([noise, noise, noise])));
    execFileSync('xz', ['-1', '--lzma2=dict=8MiB,mode=fast,mf=hc3', plain]);
    expect(String(await prepareWithin('4M', `${plain}.xz`))).toMatch(/no space for a copy/);
  });

  test.each(['pax.tar', 'pax.tar.zst'])('cancelled: %s', async (name) => {
    const path = pack(`cancel-${name}`);
    const target = join(directory, 'cancelled.tar.zst');
    const controller = new AbortController();
    const copy = withoutDevices(path, target, { log, signal: controller.signal });
    controller.abort();
    await expect(copy).rejects.toThrow('cancelled');
    expect(await readdir(directory)).not.toContain('cancelled.tar.zst');
  });

  test('what is in its place stays', async () => {
    const target = join(directory, 'taken.tar');
    await writeFile(target, 'mine');
    await expect(withoutDevices(pack('a.tar'), target, { log, signal })).rejects.toThrow('EEXIST');
    expect(await readFile(target, 'utf8')).toBe('mine');
  });
});
