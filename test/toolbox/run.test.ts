import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { describe, expect, test } from 'vitest';
import { cancelled } from '../../src/protocol/errors.ts';
import { missingProgram } from '../../src/toolbox/packages.ts';
import { processStartTime } from '../../src/toolbox/processes.ts';
import { ProgramError, run, startProgram } from '../../src/toolbox/run.ts';

const sh = (script: string, options: Parameters<typeof run>[2] = {}) =>
  run('sh', ['-c', script], options);

async function isGone(pid: number): Promise<boolean> {
  return (await processStartTime(pid)) === undefined;
}

describe('programs', () => {
  test('input goes in, output comes back', async () => {
    const input = Buffer.from([0, 255, 10, 128]);
    expect((await run('cat', [], { input })).equals(input)).toBe(true);
    expect((await run('true', [])).length).toBe(0);
  });

  test('large amounts pass in both directions', async () => {
    const input = Buffer.alloc(8 * 1024 * 1024, 'abc');
    expect((await run('cat', [], { input })).equals(input)).toBe(true);
  });

  test('arguments are never words of a shell', async () => {
    const words = ['$HOME', '; echo x', "'", '-n', '\n'];
    expect((await run('printf', ['%s|', ...words])).toString()).toBe(`${words.join('|')}|`);
  });

  test('the environment is small, and the session its own', async () => {
    process.env.SECRET_OF_TEST = 'x';
    const env = (await run('env', [], { env: { BORG_REPO: '/a' } })).toString().trim().split('\n');
    expect(env.sort()).toEqual([
      'BORG_REPO=/a',
      'LANG=C.UTF-8',
      'PATH=/usr/sbin:/usr/bin:/sbin:/bin',
    ]);
    const stat = (await run('cat', ['/proc/self/stat'])).toString().split(' ');
    expect(stat[4]).toBe(stat[0]);
    expect(stat[5]).toBe(stat[0]);
  });

  test('a failure ends with the last words of the program', async () => {
    const lines: string[] = [];
    const log = { debug: (line: string) => void lines.push(line) };
    const failing = sh('echo one >&2; echo two >&2; exit 3', { log });
    await expect(failing).rejects.toThrow('sh failed with exit status 3: two');
    await expect(failing).rejects.toMatchObject({ exitCode: 3, cause: 'one\ntwo' });
    await expect(failing).rejects.toBeInstanceOf(ProgramError);
    expect(lines).toEqual(['sh: one', 'sh: two']);
    await expect(sh('kill -9 $$')).rejects.toThrow('sh was killed by SIGKILL');
  });

  test('a missing program names its package', async () => {
    await expect(run('no-such-program', [])).rejects.toThrow(
      'the program no-such-program is missing',
    );
    expect(missingProgram('nbdfuse').message).toBe(
      'the program nbdfuse is missing; install it with: apt install libnbd-bin',
    );
    await expect(run('/no/such', [])).rejects.toThrow('the program /no/such is missing');
  });

  test('endless output is bounded', async () => {
    await expect(run('yes', [], { maxOutput: 1000 })).rejects.toThrow('more than 1000 bytes');
    const words = sh('head -c 20000000 /dev/zero | tr "\\0" x >&2; exit 1');
    const error: Error = await words.then(
      () => new Error('no error'),
      (reason) => reason,
    );
    expect(error.message.length).toBeLessThan(1100);
  });

  test('cancelled, it takes all its processes along and ends with the reason', async () => {
    const controller = new AbortController();
    const program = await startProgram(
      'sh',
      ['-c', 'trap "" TERM; sleep 61 & echo $!; wait; sleep 61'],
      { signal: controller.signal },
    );
    const [line] = (await once(program.stdout, 'data')) as [Buffer];
    const child = Number(line.toString());
    expect(await isGone(child)).toBe(false);
    const start = Date.now();
    controller.abort(cancelled('interrupted by signal'));
    await expect(program.exited).rejects.toThrow(/^interrupted by signal$/);
    expect(Date.now() - start).toBeLessThan(2000);
    await expect.poll(() => isGone(child)).toBe(true);
    expect(await isGone(program.pid)).toBe(true);
    await program.stop();
    await expect(run('true', [], { signal: controller.signal })).rejects.toThrow('interrupted');
  });

  test('A6: it does not outlive a killed host', async () => {
    const source = new URL('../../src/toolbox/run.ts', import.meta.url).href;
    const script = `const { startProgram } = await import('${source}');
      console.log((await startProgram('sleep', ['62'])).pid);`;
    const host = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const [line] = (await once(host.stdout, 'data')) as [Buffer];
    const pid = Number(line.toString());
    expect(await readFile(`/proc/${pid}/cmdline`, 'utf8')).toContain('62');
    host.kill('SIGKILL');
    await expect.poll(() => isGone(pid), { timeout: 3000 }).toBe(true);
  });
});
