import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { isSameProcess, processStartTime } from '../../src/toolbox/processes.ts';

describe('processes', () => {
  test('A6: pid and start time name one process', async () => {
    const own = await processStartTime(process.pid);
    expect(own).toBeGreaterThan(0);
    expect(await isSameProcess(process.pid, own ?? -1)).toBe(true);
    expect(await isSameProcess(process.pid, (own ?? 0) + 1)).toBe(false);
    const child = spawn('sleep', ['60']);
    const start = (await processStartTime(child.pid ?? 0)) ?? -1;
    expect(start).toBeGreaterThan(own ?? 0);
    child.kill('SIGKILL');
    await once(child, 'exit');
    expect(await isSameProcess(child.pid ?? 0, start)).toBe(false);
    expect(await processStartTime(child.pid ?? 0)).toBeUndefined();
  });

  test("a command's name may hold spaces and parentheses", async () => {
    const directory = await mkdtemp(join(tmpdir(), 'processes-'));
    const program = join(directory, 'a) S 1 (b');
    await copyFile('/usr/bin/sleep', program);
    const child = spawn(program, ['60']);
    try {
      const stat = await readFile(`/proc/${child.pid}/stat`, 'utf8');
      expect(stat).toContain('(a) S 1 (b)');
      const boot = Number(/btime (\d+)/.exec(await readFile('/proc/stat', 'utf8'))?.[1]);
      const started = boot + ((await processStartTime(child.pid ?? 0)) ?? 0) / 100;
      expect(Math.abs(started - Date.now() / 1000)).toBeLessThan(5);
    } finally {
      child.kill('SIGKILL');
      await rm(directory, { recursive: true });
    }
  });

  test('a zombie does not run any more', async () => {
    // What the shell becomes never reaps the child.
    const shell = spawn('sh', ['-c', 'sleep 0.3 & echo $!; exec sleep 60']);
    try {
      const [line] = (await once(shell.stdout, 'data')) as [Buffer];
      const pid = Number(line.toString());
      await expect
        .poll(async () => (await readFile(`/proc/${pid}/stat`, 'utf8')).includes(') Z '))
        .toBe(true);
      expect(await processStartTime(pid)).toBeUndefined();
    } finally {
      shell.kill('SIGKILL');
    }
  });
});
