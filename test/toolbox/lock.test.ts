import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { acquireLock } from '../../src/toolbox/lock.ts';

let directory: string;
let path: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'lock-'));
  path = join(directory, 'lock');
});
afterEach(() => rm(directory, { recursive: true }));

/** Whether anybody else, by flock(1) itself, could have it. */
async function isFree(kind = '--exclusive'): Promise<boolean> {
  const { exitCode } = await execa('flock', [kind, '--nonblock', path, 'true'], { reject: false });
  return exitCode === 0;
}

describe('lock', () => {
  test('exclusive keeps others out until it is released', async () => {
    const lock = await acquireLock(path, 'exclusive');
    expect(await isFree('--shared')).toBe(false);
    expect(await acquireLock(path, 'exclusive', { wait: false })).toBeUndefined();
    expect(await acquireLock(path, 'shared', { wait: 100 })).toBeUndefined();
    await lock?.release();
    await lock?.release();
    expect(await isFree()).toBe(true);
  });

  test('shared ones go together, and keep an exclusive one out', async () => {
    const one = await acquireLock(path, 'shared');
    const two = await acquireLock(path, 'shared', { wait: false });
    expect(two).toBeDefined();
    await one?.release();
    expect(await acquireLock(path, 'exclusive', { wait: false })).toBeUndefined();
    await two?.release();
    const three = await acquireLock(path, 'exclusive', { wait: false });
    expect(three).toBeDefined();
    await three?.release();
  });

  test('who waits gets it next', async () => {
    const first = await acquireLock(path, 'exclusive');
    let got = false;
    const second = acquireLock(path, 'exclusive', { wait: 20_000 }).then((lock) => {
      got = true;
      return lock;
    });
    await new Promise((resolve) => setTimeout(resolve, 150));
    expect(got).toBe(false);
    await first?.release();
    await (await second)?.release();
    expect(got).toBe(true);
  });

  test('waiting can be cancelled; a lock that is held stays held', async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const lock = await acquireLock(path, 'exclusive', { signal });
    const waiting = acquireLock(path, 'exclusive', { signal });
    setTimeout(() => controller.abort(), 100);
    await expect(waiting).rejects.toThrow('cancelled');
    expect(await isFree()).toBe(false);
    await expect(acquireLock(path, 'shared', { signal })).rejects.toThrow('cancelled');
    await lock?.release();
    expect(await isFree()).toBe(true);
  });

  test('a path that cannot be locked is an error', async () => {
    await expect(acquireLock(join(directory, 'no', 'lock'), 'shared')).rejects.toThrow(
      /flock failed .* No such file or directory/,
    );
  });

  test('the kernel releases it when the host is killed', async () => {
    const source = new URL('../../src/toolbox/lock.ts', import.meta.url).href;
    const script = `const { acquireLock } = await import('${source}');
      await acquireLock('${path}', 'exclusive'); console.log('held'); setInterval(() => 0, 999);`;
    const host = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(host.stdout, 'data');
    expect(await isFree()).toBe(false);
    host.kill('SIGKILL');
    await expect.poll(isFree, { timeout: 3000 }).toBe(true);
  });
});
