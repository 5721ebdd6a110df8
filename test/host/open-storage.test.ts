import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import * as z from 'zod';
import { parseOptions, readCluster, readSecrets } from '../../src/host/open-storage.ts';
import { nodePaths } from '../../src/host/paths.ts';
import { changeable, core, defineProvider, fixed, secret } from '../../src/sdk/index.ts';

const definition = defineProvider({
  type: 'acme',
  title: 'ACME',
  version: '1',
  archiveName: '{vmtype}-{vmid}-{time}',
  options: {
    path: core.path,
    'acme-level': changeable(z.int().min(1).max(9).default(3).describe('x')),
    'acme-fast': changeable(z.boolean().optional().describe('x')),
    'acme-name': fixed(z.string().min(2).describe('x')),
    'acme-token': secret(z.string().describe('x')),
    'acme-spare': secret(z.string().optional().describe('x')),
  },
  open: () => {
    throw new Error('not opened here');
  },
});

describe('options of storage.cfg, which knows only text', () => {
  test.each([
    [{ path: '/x', 'acme-name': 'ab' }, { 'acme-level': 3 }],
    [{ path: '/x', 'acme-name': 'ab', 'acme-level': '5' }, { 'acme-level': 5 }],
    [
      { path: '/x', 'acme-name': 'ab', 'acme-fast': '1' },
      { 'acme-level': 3, 'acme-fast': true },
    ],
    [
      { path: '/x', 'acme-name': 'ab', 'acme-fast': 0 },
      { 'acme-level': 3, 'acme-fast': false },
    ],
    [
      { path: '/x', 'acme-name': 12, content: { backup: 1 } },
      { 'acme-name': '12', 'acme-level': 3 },
    ],
  ])('%j', (scfg, expected) => {
    expect(parseOptions(definition, scfg)).toEqual({ path: '/x', 'acme-name': 'ab', ...expected });
  });

  test.each([
    [{ 'acme-name': 'ab' }, "storage.cfg lacks 'path', which this storage type needs"],
    [{ path: '/x' }, "storage.cfg lacks 'acme-name', which this storage type needs"],
    [
      { path: '/x', 'acme-name': 'ab', 'acme-level': '10' },
      "storage.cfg: 'acme-level' is not valid",
    ],
    [
      { path: '/x', 'acme-name': 'ab', 'acme-level': 'x' },
      "storage.cfg: 'acme-level' is not valid",
    ],
  ])('%j is refused', (scfg, message) => {
    expect(() => parseOptions(definition, scfg)).toThrow(message);
  });
});

describe('what lies beside storage.cfg', () => {
  let root: string;
  beforeAll(async () => {
    root = await mkdtemp(join(tmpdir(), 'node-'));
    await mkdir(join(root, 'etc/pve/priv/storage'), { recursive: true });
  });
  afterAll(() => rm(root, { recursive: true, force: true }));

  test('a secret is read from its file, an optional one may be missing', async () => {
    const paths = nodePaths(root, 'vault');
    await expect(readSecrets(definition, paths)).rejects.toThrow(
      "cannot read the secret 'acme-token'",
    );
    await writeFile(join(root, 'etc/pve/priv/storage/vault.acme-token'), 's3cret\n');
    expect(await readSecrets(definition, paths)).toEqual({ 'acme-token': 's3cret' });
  });

  test('the cluster is known by its name, a node without one by its machine id', async () => {
    const paths = nodePaths(root, 'vault');
    expect(await readCluster(paths)).toBe('machine unknown');
    await writeFile(join(root, 'etc/machine-id'), 'abc\n');
    expect(await readCluster(paths)).toBe('machine abc');
    await writeFile(join(root, 'etc/pve/corosync.conf'), 'totem {\n  cluster_name: prod\n}\n');
    expect(await readCluster(paths)).toBe('cluster prod');
  });
});
