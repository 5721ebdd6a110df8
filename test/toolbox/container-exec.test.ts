import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { setTimeout as wait } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { cancelled } from '../../src/protocol/errors.ts';
import { container, openTree, processesIn } from './support/container-tree.ts';

async function tree() {
  const caller = await container().fill('echo hello >file').giveAway().start();
  return { caller, tree: await openTree(caller) };
}

describe("a program in a container's namespaces", () => {
  test('input, output, environment, words', async () => {
    const { exec } = await bound();
    const program = await exec(['sh', '-c', 'cat - file; echo "$1 $KEY"', 'sh', '$(x)'], {
      env: { KEY: 'a b' },
    });
    program.stdin.end('from outside\n');
    expect(await text(program.stdout)).toBe('from outside\nhello\n$(x) a b\n');
    await program.exited;
  });

  test('what it wrote waits for whoever reads late', async () => {
    const { exec } = await bound();
    const program = await exec(['sh', '-c', 'cat file']);
    await program.exited;
    await wait(100);
    expect(await text(program.stdout)).toBe('hello\n');
  });

  test('more than fits waits too, in bounded memory', async () => {
    const { exec } = await bound();
    const program = await exec(['head', '-c', '20000000', '/dev/zero']);
    await wait(300);
    expect(program.stdout.readableLength).toBeLessThan(1e6);
    let bytes = 0;
    for await (const chunk of program.stdout) bytes += chunk.length;
    await program.exited;
    expect(bytes).toBe(20_000_000);
  });

  test('a failure ends with its last words, of bounded length', async () => {
    const { exec } = await bound();
    const lines: string[] = [];
    const program = await exec(
      ['sh', '-c', 'printf "%05000d\\n" 7 >&2; echo "no such repository" >&2; exit 2'],
      { onStderr: (line) => void lines.push(line) },
    );
    await expect(program.exited).rejects.toThrow(
      'sh failed with exit status 2: no such repository',
    );
    expect(lines.map((line) => line.length)).toEqual([1000, 18]);
    await expect(exec(['no-such-program'])).rejects.toThrow('no-such-program is missing');
  });

  test('stopped, cancelled, and ended with the tree', async () => {
    const { exec, caller, tree } = await bound();
    const stubborn = await exec(['sh', '-c', 'trap "" TERM; echo; while :; do sleep 0.1; done']);
    await once(stubborn.stdout, 'data');
    await stubborn.stop();
    await expect(stubborn.exited).rejects.toThrow('sh was killed by SIGKILL');
    const controller = new AbortController();
    const cancelling = await exec(['sleep', '71'], { signal: controller.signal });
    controller.abort(cancelled('interrupted by signal'));
    await expect(cancelling.exited).rejects.toThrow(/^interrupted by signal$/);
    const ending = await exec(['sleep', '72']);
    await tree.close();
    await expect(ending.exited).rejects.toThrow('the container tree was closed');
    expect(processesIn(caller)).toEqual([]);
  });
});

async function bound() {
  const opened = await tree();
  return { ...opened, exec: opened.tree.exec.bind(opened.tree) };
}
