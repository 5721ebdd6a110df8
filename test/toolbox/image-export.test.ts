import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream } from 'node:fs';
import { mkdir, mkdtemp, open, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { RawImage } from '../../src/sdk/provider.ts';
import { collectStaleExports, exportImage } from '../../src/toolbox/image-export.ts';
import { isMounted } from '../../src/toolbox/mounts.ts';
import { processStartTime } from '../../src/toolbox/processes.ts';
import { LogLines } from './support/log.ts';

const mib = 1024 * 1024;
const log = new LogLines();
let directory: string;
const closers: (() => Promise<void>)[] = [];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'image-export-'));
});
afterEach(async () => {
  for (const close of closers.splice(0)) await close();
  await rm(directory, { recursive: true });
});

function imageOf(data: Buffer, traits: Partial<RawImage> = {}): RawImage {
  return {
    size: data.length,
    read: async (offset, length) => data.subarray(offset, offset + length),
    close: async () => undefined,
    ...traits,
  };
}

async function serve(image: RawImage, options: { name?: string; signal?: AbortSignal } = {}) {
  const file = await exportImage(image, {
    directory: join(directory, 'mounts'),
    name: options.name ?? 'drive-scsi0.raw',
    signal: options.signal ?? new AbortController().signal,
    log: new LogLines(),
  });
  closers.push(file.close);
  return file;
}

async function pidOf(path: string): Promise<number> {
  for (const pid of await readdir('/proc')) {
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (line.startsWith('/usr/bin/nbdfuse') && line.includes(path)) return Number(pid);
  }
  throw new Error(`no nbdfuse for ${path}`);
}

describe('image export', () => {
  test('C3: a regular file of the right size that qemu-img reads bit for bit', async () => {
    // Not a multiple of the page size or the read-ahead.
    const data = Buffer.concat([randomBytes(5 * mib), Buffer.alloc(3 * mib), randomBytes(512 * 3)]);
    const { path, close } = await serve(imageOf(data));
    const found = await stat(path);
    expect([found.isFile(), found.size]).toEqual([true, data.length]);
    const plain = join(directory, 'plain.raw');
    await writeFile(plain, data);
    await execa('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', path, plain]);
    const copy = join(directory, 'copy.raw');
    await execa('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', path, copy]);
    expect((await readFile(copy)).equals(data)).toBe(true);
    await close();
    expect(await readdir(join(directory, 'mounts'))).toEqual([]);
    await close();
  });

  test('the file cannot be written to', async () => {
    const { path } = await serve(imageOf(randomBytes(mib)));
    await expect(writeFile(path, 'x', { flag: 'r+' })).rejects.toThrow(/EACCES|EROFS|EPERM/);
  });

  test('several at once, at a path too long for a socket', async () => {
    const before = directory;
    directory = join(directory, 'a'.repeat(60), 'b'.repeat(60));
    await mkdir(directory, { recursive: true });
    const disks = Array.from({ length: 3 }, () => randomBytes(mib));
    const files = await Promise.all(
      disks.map((disk, i) => serve(imageOf(disk), { name: `d${i}` })),
    );
    for (const [i, { path }] of files.entries()) {
      expect((await readFile(path)).equals(disks[i] ?? Buffer.alloc(0))).toBe(true);
    }
    directory = before;
  });

  test('a read that fails is an I/O error of that read', async () => {
    const data = randomBytes(8 * mib);
    const { path } = await serve(
      imageOf(data, {
        read: async (offset, length) => {
          if (offset + length > 4 * mib) throw new Error('damaged');
          return data.subarray(offset, offset + length);
        },
      }),
    );
    const file = await open(path);
    const buffer = Buffer.alloc(4096);
    await expect(file.read(buffer, 0, 4096, 6 * mib)).rejects.toThrow('EIO');
    await file.read(buffer, 0, 4096, 0);
    expect(buffer.equals(data.subarray(0, 4096))).toBe(true);
    await file.close();
  });

  test('closing takes the file from a reader that holds it open', async () => {
    const { path, close } = await serve(imageOf(randomBytes(64 * mib)));
    const reader = createReadStream(path);
    await once(reader, 'data');
    reader.pause();
    const pid = await pidOf(path);
    await close();
    expect(await processStartTime(pid)).toBeUndefined();
    await expect(stat(path)).rejects.toThrow('ENOENT');
    reader.on('error', () => undefined);
    reader.destroy();
    expect(await readdir(join(directory, 'mounts'))).toEqual([]);
  });

  test('closing does not wait for a read that hangs', async () => {
    const image = imageOf(Buffer.alloc(mib), { read: () => new Promise(() => {}) });
    const { path, close } = await serve(image);
    const reader = spawn('cat', [path], { stdio: 'ignore' });
    const ended = once(reader, 'exit');
    await new Promise((resolve) => setTimeout(resolve, 200));
    const start = Date.now();
    await close();
    expect(Date.now() - start).toBeLessThan(4000);
    expect((await ended)[0]).not.toBe(0);
    expect(await readdir(join(directory, 'mounts'))).toEqual([]);
  });

  test('a killed nbdfuse is an error for the reader, and nothing is left', async () => {
    const { path, close } = await serve(imageOf(randomBytes(mib)));
    process.kill(await pidOf(path), 'SIGKILL');
    // The kernel keeps the attributes for a second.
    const code = () => stat(path).catch((error: NodeJS.ErrnoException) => error.code);
    await expect.poll(code, { timeout: 5000 }).toBe('ENOTCONN');
    await close();
    expect(await readdir(join(directory, 'mounts'))).toEqual([]);
  });

  test('cancelled while it starts, it leaves nothing', async () => {
    const controller = new AbortController();
    const starting = serve(imageOf(Buffer.alloc(mib)), { signal: controller.signal });
    setTimeout(() => controller.abort(), 5);
    await expect(starting).rejects.toThrow('cancelled');
    expect(await readdir(join(directory, 'mounts'))).toEqual([]);
  });

  describe('a host that is killed', () => {
    async function host() {
      const child = spawn(
        process.execPath,
        ['--import', 'tsx', new URL('support/export-host.ts', import.meta.url).pathname, directory],
        { stdio: ['ignore', 'pipe', 'inherit'] },
      );
      const [line] = (await once(child.stdout, 'data')) as [Buffer];
      const path = line.toString().trim();
      return { child, path, mountPoint: join(path, '..'), nbdfuse: await pidOf(path) };
    }

    test('takes nbdfuse and the mount with it', async () => {
      const { child, path, mountPoint, nbdfuse } = await host();
      const before = createHash('sha256')
        .update(await readFile(path))
        .digest('hex');
      expect(before).toHaveLength(64);
      child.kill('SIGKILL');
      await expect.poll(() => processStartTime(nbdfuse), { timeout: 5000 }).toBeUndefined();
      expect(await isMounted(mountPoint)).toBe(false);
      await collectStaleExports(directory, log);
      expect(await readdir(directory)).toEqual([]);
    });

    test('together with nbdfuse: its dead mount is collected, a living one is not', async () => {
      const dead = await host();
      const alive = await host();
      const exit = once(dead.child, 'exit');
      process.kill(dead.nbdfuse, 'SIGKILL');
      dead.child.kill('SIGKILL');
      await expect.poll(() => processStartTime(dead.nbdfuse)).toBeUndefined();
      await exit;
      expect(await isMounted(dead.mountPoint)).toBe(true);
      await collectStaleExports(directory, log);
      expect(await isMounted(dead.mountPoint)).toBe(false);
      expect((await stat(alive.path)).size).toBe(mib);
      alive.child.kill('SIGKILL');
      await expect.poll(() => processStartTime(alive.nbdfuse), { timeout: 5000 }).toBeUndefined();
      await collectStaleExports(directory, log);
      expect(await readdir(directory)).toEqual([]);
    });
  });

  test('a leftover that cannot be removed keeps no job and no restore from its work', async () => {
    for (const name of ['1-1-1', '1-1-2'])
      await mkdir(join(directory, name, 'm'), { recursive: true });
    await writeFile(join(directory, '1-1-1/m/stray'), '');
    await collectStaleExports(directory, log);
    expect(await readdir(directory)).toEqual(['1-1-1']);
    await rm(join(directory, '1-1-1'), { recursive: true });
  });

  test('a directory that is not there has nothing to collect', async () => {
    await collectStaleExports(join(directory, 'none'), log);
  });
});
