import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { deviceName, storeid, volname } from '../../src/protocol/model.ts';

/** The same cases are checked against the shim by test/perl/protocol-fixtures.t. */
const path = new URL('../../fixtures/protocol/volnames.json', import.meta.url);
const fixtures: Record<string, { accept: string[]; reject: string[] }> = JSON.parse(
  readFileSync(path, 'utf8'),
);
const long = 'x'.repeat(10_000_000);
const schemas = { volname, storeid, 'device-name': deviceName };

describe.each(Object.entries(schemas))('%s', (kind, schema) => {
  const { accept = [], reject = [] } = fixtures[kind] ?? {};

  test.each(accept)('accepts %j', (value) => {
    expect(schema.safeParse(value).success).toBe(true);
  });

  test.each(reject)('rejects %j', (value) => {
    expect(schema.safeParse(value).success).toBe(false);
  });

  test('rejects 10 MB of text', () => {
    for (const value of [long, `backup/100/qemu-${long}`]) {
      expect(schema.safeParse(value).success).toBe(false);
    }
  });
});
