import { expect, test } from 'vitest';
import { parseStorageConfig } from '../../src/cli/storage-config.ts';

test('sections, values with spaces, switches and comments of storage.cfg', () => {
  const text =
    '# by hand\n\ndir: local\n\tpath /var/lib/vz\n\tcontent iso,backup\n\n' +
    'bridge-dir: Vault-1.b\n\tpath /srv/my store \n        bridge-dir-compression none\n\tdisable\n';
  expect(Object.fromEntries(parseStorageConfig(text))).toEqual({
    local: { type: 'dir', properties: { path: '/var/lib/vz', content: 'iso,backup' } },
    'Vault-1.b': {
      type: 'bridge-dir',
      properties: { path: '/srv/my store', 'bridge-dir-compression': 'none', disable: '1' },
    },
  });
});

test.each(['', '\n', '\tpath /nowhere\n', 'nonsense', 'dir:\n\tpath /x\n'])(
  '%j has none',
  (text) => {
    expect(parseStorageConfig(text).size).toBe(0);
  },
);
