import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { PveNode } from '../../fixtures/pve/pve-node.ts';
import { hostPids } from './support/leftovers.ts';
import { mostSeconds, Pvestatd } from './support/pvestatd.ts';
import { VendorInstall } from './support/vendor.ts';

/** How `status` of the provider hangs for as long as a file is there. */
const hangs = {
  waits: 'while (existsSync(FILE)) await new Promise((next) => setTimeout(next, 20));',
  'is deaf':
    'while (existsSync(FILE)) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);',
};

describe.each(Object.entries(hangs))('a store whose provider %s', (_, hang) => {
  let vendor: VendorInstall;
  let node: PveNode;
  let pvestatd: Pvestatd;
  let flag: string;

  beforeEach(async () => {
    vendor = await VendorInstall.create();
    node = await PveNode.create(vendor.nodeOptions);
    flag = join(node.root, 'hangs');
    const file = join(vendor.providers, 'sample/provider.mjs');
    const source = await readFile(file, 'utf8');
    const call = "await this.misbehave('status');";
    expect(source).toContain(call);
    const code = hang.replace('FILE', JSON.stringify(flag));
    const imports = "import { existsSync } from 'node:fs';\n";
    await writeFile(file, imports + source.replace(call, code));
    for (const [storeid, type] of [
      ['hung', 'sample'],
      ['vault', 'bridge-dir'],
    ] as const) {
      const path = join(node.root, storeid);
      await mkdir(path);
      await node.addStorage(storeid, type, { path, content: 'backup' });
    }
    pvestatd = new Pvestatd(node);
  });
  afterEach(async () => {
    await rm(flag, { force: true });
    await pvestatd.end();
    await node.destroy();
    await vendor.remove();
  });

  test('A12: holds up poll after poll for 2 s at most, and is back once it answers', async () => {
    await pvestatd.pollUntilActive();
    const hosts = await hostPids(node.root);
    expect(hosts).toHaveLength(2);
    await writeFile(flag, '');
    for (let count = 0; count < 4; count++) {
      const { seconds, info } = await pvestatd.poll();
      expect(seconds).toBeLessThan(mostSeconds);
      // the last known state stands in for the late answer
      expect(info).toMatchObject({ hung: { active: 1, used: 400 }, vault: { active: 1 } });
    }
    await rm(flag);
    await sleep(200);
    const { seconds, info } = await pvestatd.poll();
    expect(seconds).toBeLessThan(1);
    expect(info).toMatchObject({ hung: { active: 1, used: 400 }, vault: { active: 1 } });
    expect(await hostPids(node.root)).toEqual(hosts);
  });

  test('A12: from the start, it is inactive, the other is not, and it comes up later', async () => {
    await writeFile(flag, '');
    await pvestatd.poll(); // starts the hosts
    for (let count = 0; count < 3; count++) {
      const { seconds, info } = await pvestatd.poll();
      expect(seconds).toBeLessThan(mostSeconds);
      expect(info).toMatchObject({ hung: { active: 0, total: 0 }, vault: { active: 1 } });
    }
    const hosts = await hostPids(node.root);
    expect(hosts).toHaveLength(2);
    await rm(flag);
    await pvestatd.pollUntilActive();
    expect(await hostPids(node.root)).toEqual(hosts);
  });
});
