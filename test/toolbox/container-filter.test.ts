import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createWriteStream, readdirSync, readlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { pipeline } from 'node:stream/promises';
import { setTimeout as wait } from 'node:timers/promises';
import { describe, expect, onTestFinished, test } from 'vitest';
import { cancelled } from '../../src/protocol/errors.ts';
import type { TarOptions } from '../../src/sdk/provider.ts';
import type { ContainerTreeOptions } from '../../src/toolbox/container-tree.ts';
import { container, firstBytes, openTree, processesIn, readTar } from './support/container-tree.ts';

const mib = 1024 * 1024;
/** Of the files' content: the headers hold times of access. */
const hash = (tar: Buffer) => {
  const content = execFileSync('tar', ['-xOf', '-'], { input: tar, maxBuffer: 1e9 });
  return createHash('sha256').update(content).digest('hex');
};

/** A container that is larger than all buffers on the way. */
async function large(options: Partial<ContainerTreeOptions> = {}) {
  const caller = container().fill('for i in 1 2 3 4; do head -c 4M /dev/urandom >$i; done');
  return { caller, tree: await openTree(await caller.giveAway().start(), options) };
}

/** What stands in a tar with a limit, in each of the ways in which programs can be connected. */
const ways: { name: string; limit?: number; through?: TarOptions['through'] }[] = [
  { name: 'alone' },
  { name: 'alone, limited', limit: 1e9 },
  { name: 'filtered', through: ['cat'] },
  { name: 'filtered, limited', through: ['cat'], limit: 1e9 },
];
const limitOf = (limit?: number) => (limit === undefined ? {} : { bandwidthLimit: limit });
const throughOf = (through?: TarOptions['through']) => (through === undefined ? {} : { through });

describe('tar and its filter', () => {
  test('the bytes are the same in every way', async () => {
    const { caller, tree } = await large();
    const plain = await readTar(tree);
    expect(plain.data.length).toBeGreaterThan(16 * mib);
    for (const { name, limit, through } of ways) {
      const other = await readTar(await openTree(caller, limitOf(limit)), throughOf(through));
      expect(hash(other.data), name).toBe(hash(plain.data));
      expect(other.totals, name).toEqual(plain.totals);
    }
    const packed = await readTar(tree, { through: ['zstd', '-T0', '-q'] });
    const unpacked = execFileSync('zstd', ['-dcq'], { input: packed.data, maxBuffer: 1e9 });
    expect(hash(unpacked)).toBe(hash(plain.data));
    expect(packed.totals).toEqual(plain.totals);
  });

  test.each(ways)('nobody reads, nothing is lost, memory is bounded: $name', async (way) => {
    const { tree, caller } = await large(limitOf(way.limit));
    const { stream, done } = await tree.tar(throughOf(way.through));
    await wait(400);
    expect(stream.readableLength).toBeLessThan(2 * mib);
    expect(processesIn(caller).some(({ name }) => name === 'tar')).toBe(true);
    let bytes = 0;
    for await (const chunk of stream) bytes += chunk.length;
    expect((await done).bytes).toBe(bytes);
  });

  test.each(ways)('cancelled, all ends with the reason: $name', async (way) => {
    const { tree, caller } = await large(limitOf(way.limit));
    const controller = new AbortController();
    const { stream, done } = await tree.tar({
      ...throughOf(way.through),
      signal: controller.signal,
    });
    await firstBytes(stream, 1000);
    controller.abort(cancelled('interrupted by signal'));
    await expect(done).rejects.toThrow(/^interrupted by signal$/);
    expect(processesIn(caller)).toEqual([]);
    const again = tree.tar({ signal: controller.signal });
    await expect(again).rejects.toThrow('interrupted by signal');
  });

  test.each(ways)('whoever stops reading ends it: $name', async (way) => {
    const { tree, caller } = await large(limitOf(way.limit));
    const { stream, done } = await tree.tar(throughOf(way.through));
    const written = pipeline(stream, createWriteStream('/dev/full'));
    await expect(written).rejects.toThrow('ENOSPC');
    await expect(done).rejects.toThrow(/stream was closed before its end: .*ENOSPC/);
    await expect.poll(() => processesIn(caller)).toEqual([]);
  });

  test('closing the tree ends what runs there', async () => {
    const { tree, caller } = await large();
    const { done } = await tree.tar();
    await tree.close();
    await tree.close();
    await expect(done).rejects.toThrow('the container tree was closed');
    expect(processesIn(caller)).toEqual([]);
    await expect(tree.tar()).rejects.toThrow('closed');
    await expect(tree.exec(['true'])).rejects.toThrow('closed');
  });

  test.each([{}, { bandwidthLimit: 1e9 }])('a filter that fails says why, %o', async (options) => {
    const { tree, caller } = await large(options);
    const fails = async (...through: [string, ...string[]]) => {
      const { stream, done } = await tree.tar({ through });
      stream.resume();
      return done;
    };
    await expect(fails('sh', '-c', 'head -c 100; echo no space left >&2; exit 3')).rejects.toThrow(
      /^sh failed with exit status 3: no space left$/,
    );
    await expect(fails('sh', '-c', 'kill -9 $$')).rejects.toThrow('sh was killed by SIGKILL');
    await expect(fails('head', '-c', '100')).rejects.toThrow(
      'head ended before it had read the whole container',
    );
    await expect(fails('sh', '-c', 'cat >/dev/null; exit 4')).rejects.toThrow('sh failed');
    await expect(fails('sh', '-c', 'exec <&-; sleep 67')).rejects.toThrow('sh ended before');
    await expect(fails('no-such-filter')).rejects.toThrow('the program no-such-filter is missing');
    await expect.poll(() => processesIn(caller)).toEqual([]);
  });

  test('no descriptor and no FIFO stays', async () => {
    const { tree } = await large();
    await readTar(tree, { through: ['cat'] });
    const before = readdirSync('/proc/self/fd').length;
    for (let i = 0; i < 3; i++) await readTar(tree, { through: ['cat'] });
    expect(readdirSync('/proc/self/fd').length).toBeLessThanOrEqual(before);
    const folders = readdirSync(tmpdir()).filter((name) => name.startsWith('pve-backup-bridge-'));
    expect(folders).toEqual([]);
  });

  test.each(ways.slice(0, 3))('a bandwidth limit holds, $name', async ({ through }) => {
    const { tree } = await large({ bandwidthLimit: 2 * mib });
    const start = performance.now();
    const { stream, done } = await tree.tar(throughOf(through));
    done.catch(() => undefined);
    let bytes = 0;
    for await (const chunk of stream) {
      bytes += chunk.length;
      if (performance.now() - start > 2000) break;
    }
    expect(bytes).toBeGreaterThan(2 * mib);
    expect(bytes).toBeLessThan(6 * mib);
  });

  test.each([[[]], [['cat']]])(
    'A6: nothing outlives a killed host, through %o',
    async (through) => {
      const { caller } = await large();
      const script = new URL('./support/container-host.ts', import.meta.url).pathname;
      const { pid, startTime } = caller.identity;
      // With a descriptor that the host itself has inherited and does not know.
      const start = `exec 40</etc/hostname 41>/dev/null; exec "$@"`;
      const node = [process.execPath, '--import', 'tsx', script, caller.directory, pid, startTime];
      const args = ['-c', start, 'bash', ...node.map(String), ...through];
      const host = spawn('bash', args, { stdio: ['ignore', 'pipe', 'inherit'] });
      onTestFinished(() => void host.kill('SIGKILL'));
      await once(host.stdout, 'data');
      const names = () => processesIn(caller).map(({ name }) => name);
      const arrived = () =>
        names()
          .filter((name) => /^(?:sleep|tar)$/.test(name))
          .sort();
      await expect.poll(arrived).toEqual(['sleep', 'tar']);
      const tar = processesIn(caller).find(({ name }) => name === 'tar')?.pid;
      const files = readdirSync(`/proc/${tar}/fd`).filter((fd) => Number(fd) > 2);
      const links = files.map((fd) => readlinkSync(`/proc/${tar}/fd/${fd}`));
      expect(links.filter((link) => !link.startsWith(caller.directory))).toEqual([]);
      const isPipe = readlinkSync(`/proc/${tar}/fd/1`).startsWith(tmpdir());
      expect(isPipe).toBe(through.length > 0);
      host.kill('SIGKILL');
      await expect.poll(() => processesIn(caller), { timeout: 5000 }).toEqual([]);
    },
  );
});
