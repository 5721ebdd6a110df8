import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { DigestSet } from '../../../src/providers/directory/digest-set.ts';

test('has what was added, through growth, and nothing else', () => {
  const set = new DigestSet();
  const added = Array.from({ length: 20_000 }, () => randomBytes(32));
  for (const digest of added) set.add(digest);
  for (const digest of added) set.add(digest);
  expect(set.size).toBe(20_000);
  expect(added.every((digest) => set.has(digest))).toBe(true);
  const others = Array.from({ length: 20_000 }, () => randomBytes(32));
  expect(others.some((digest) => set.has(digest))).toBe(false);
});

test('reads digests at an offset; a zero chunk, or a digest that begins like one, is never garbage', () => {
  const set = new DigestSet();
  const digests = randomBytes(64);
  set.add(digests, 32);
  expect(set.has(digests.subarray(32))).toBe(true);
  expect(set.has(digests)).toBe(false);
  expect(set.has(Buffer.alloc(32))).toBe(true);
  expect(set.has(Buffer.concat([Buffer.alloc(8), randomBytes(24)]))).toBe(true);
});
