import { createHash } from 'node:crypto';
import {
  appendFileSync,
  chmodSync,
  chownSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { describe, expect, test } from 'vitest';
import type { ContainerCaller } from './support/container-caller.ts';
import {
  container,
  firstBytes,
  memberOf,
  namesOf,
  openTree,
  warningsOf,
} from './support/container-tree.ts';

const size = 8 * 1024 * 1024;
const content = (name: string) => Buffer.alloc(size, `${name} of the container\n`);
const hash = (data: Buffer) => createHash('sha256').update(data).digest('hex');

/** Starts a tar that waits in the middle of its first file; says which one that is, and which comes later. */
async function waitingTar() {
  const caller = container().fill('mkdir d');
  for (const name of ['x', 'y']) writeFileSync(join(caller.root, 'd', name), content(name));
  const tree = await openTree(await caller.giveAway().start());
  const { stream, done } = await tree.tar();
  const head = await firstBytes(stream, 16 * 1024);
  const [first, second] = head.includes('./d/x') ? ['x', 'y'] : ['y', 'x'];
  const finish = async () => {
    const data = Buffer.concat([head, await buffer(stream)]);
    return { data, totals: await done };
  };
  const path = (name = '') => join(caller.root, 'd', name);
  const warnings = () => warningsOf(tree.log);
  return { first: path(first), second: path(second), names: { first, second }, finish, warnings };
}

describe('a container that goes on living', () => {
  test('a file that grows', async () => {
    const tar = await waitingTar();
    appendFileSync(tar.first, 'more');
    const { data, totals } = await tar.finish();
    expect(tar.warnings()).toEqual([`warn: ./d/${tar.names.first}: file changed as we read it`]);
    expect(totals).toEqual({ entries: 4, bytes: data.length });
    for (const name of ['x', 'y']) {
      expect(hash(memberOf(data, `./d/${name}`))).toBe(hash(content(name)));
    }
  });

  test('a file that shrinks', async () => {
    const tar = await waitingTar();
    truncateSync(tar.first, size - 1000);
    const { data } = await tar.finish();
    expect(tar.warnings()[0]).toBe(
      `warn: ./d/${tar.names.first}: File shrank by 1000 bytes; padding with zeros`,
    );
    const { first = '', second = '' } = tar.names;
    const expected = content(first).fill(0, size - 1000);
    expect(hash(memberOf(data, `./d/${first}`))).toBe(hash(expected));
    expect(hash(memberOf(data, `./d/${second}`))).toBe(hash(content(second)));
  });

  test('a file that vanishes', async () => {
    const tar = await waitingTar();
    unlinkSync(tar.second);
    const { data, totals } = await tar.finish();
    const { first = '', second } = tar.names;
    expect(tar.warnings()).toContain(`warn: ./d/${second}: File removed before we read it`);
    expect(namesOf(data)).toEqual(['./', './d/', `./d/${first}`]);
    expect(hash(memberOf(data, `./d/${first}`))).toBe(hash(content(first)));
    expect(totals.entries).toBe(3);
  });

  test('many that vanish are counted after the first twenty', async () => {
    const caller = container().fill(
      'mkdir d; for i in {1..60}; do head -c 200000 /dev/zero >d/$i; done',
    );
    const tree = await openTree(await caller.giveAway().start());
    const { stream, done } = await tree.tar();
    const head = await firstBytes(stream, 1024);
    caller.fill('cd d; rm $(ls -U | tail -n 60)');
    const data = Buffer.concat([head, await buffer(stream)]);
    const missing = 62 - (await done).entries;
    expect(missing).toBeGreaterThan(30);
    expect(namesOf(data)).toHaveLength(62 - missing);
    const warnings = warningsOf(tree.log);
    expect(warnings).toHaveLength(21);
    expect(warnings.at(-1)).toMatch(/^warn: and \d+ more/);
  });
});

describe('a container that cannot be read', () => {
  async function failure(caller: ContainerCaller, sources: string[]): Promise<Error> {
    const tree = await openTree(caller, { sources });
    const { stream, done } = await tree.tar();
    stream.resume();
    return done.then(
      () => new Error('no error'),
      (error) => error,
    );
  }

  test.each([{ through: false }, { through: true }])('names the file, %o', async ({ through }) => {
    const caller = container().fill('touch a b secret z').giveAway();
    chownSync(join(caller.root, 'secret'), 12, 12);
    chmodSync(join(caller.root, 'secret'), 0);
    const tree = await openTree(await caller.start());
    const { stream, done } = await tree.tar(through ? { through: ['zstd', '-T0'] } : {});
    stream.resume();
    await expect(done).rejects.toThrow(
      'tar failed with exit status 2: ./secret: Cannot open: Permission denied',
    );
  });

  test('a missing mount point, a missing root', async () => {
    const caller = await container().giveAway().start();
    expect((await failure(caller, ['./', './mnt/gone'])).message).toBe(
      'tar failed with exit status 2: ./mnt/gone: Cannot stat: No such file or directory',
    );
    const tree = await openTree(caller, { directory: '/no/such' });
    const { stream, done } = await tree.tar();
    stream.resume();
    await expect(done).rejects.toThrow(/^tar failed with exit status 1: nsenter: .*No such file/);
  });
});
