import { expect, test } from 'vitest';
import * as z from 'zod';
import * as sdk from '../../src/sdk/index.ts';

const { changeable, core, defineProvider, fixed, manifestOf, secret } = sdk;

const definition = {
  type: 'acme',
  title: 'ACME Vault',
  version: '2.1.0',
  archiveName: 'pve-{vmtype}-{vmid}-{time}',
  options: {
    path: core.path,
    'acme-url': fixed(z.url().describe('Where the vault is.')),
    'acme-level': changeable(z.int().min(1).max(9).default(3).describe('How hard.')),
    'acme-token': secret(z.string().describe('What opens it.')),
  },
  open: () => {
    throw new Error('not opened here');
  },
};

test('the SDK exports these names and no others', () => {
  expect(Object.keys(sdk).sort()).toEqual([
    'BackupError',
    'changeable',
    'core',
    'defineProvider',
    'fixed',
    'manifestOf',
    'secret',
  ]);
});

test('a manifest says in PVE’s schema dialect what the options are', () => {
  const { properties, options, sensitive, ...rest } = manifestOf(defineProvider(definition));
  expect(rest).toEqual({
    type: 'acme',
    title: 'ACME Vault',
    version: '2.1.0',
    'archive-name': 'pve-{vmtype}-{vmid}-{time}',
  });
  expect(properties).toEqual({
    'acme-url': { type: 'string', description: 'Where the vault is.' },
    'acme-level': { type: 'integer', minimum: 1, maximum: 9, default: 3, description: 'How hard.' },
    'acme-token': { type: 'string', description: 'What opens it.' },
  });
  expect(options).toMatchObject({
    path: { fixed: 1 },
    'acme-url': { fixed: 1 },
    'acme-level': { optional: 1 },
    'acme-token': {},
    'prune-backups': { optional: 1 },
  });
  expect(sensitive).toEqual(['acme-token']);
});

test('D2: a property of somebody else’s name is refused, since it would break every storage', () => {
  const options = { token: secret(z.string()) };
  expect(() => defineProvider({ ...definition, options })).toThrow("must start with 'acme-'");
});

test.each(['Acme', 'a', 'ac me', 'acme-', '../acme', ''])('the type %j is refused', (type) => {
  expect(() => defineProvider({ ...definition, type, options: {} })).toThrow('provider type');
});

test('an archive name that lacks the vmid is refused: the shim could not parse it', () => {
  expect(() => defineProvider({ ...definition, archiveName: '{vmtype}-{time}' })).toThrow('{vmid}');
});

test.each([
  ['no description', z.string()],
  ['an object', z.object({}).describe('x')],
])('an option with %s is refused', (_name, schema) => {
  const options = { 'acme-x': changeable(schema) };
  expect(() => manifestOf(defineProvider({ ...definition, options }))).toThrow('acme-x');
});
