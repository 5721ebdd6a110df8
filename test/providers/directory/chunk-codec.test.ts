import { randomBytes } from 'node:crypto';
import { brotliCompressSync, brotliDecompressSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { compress, decompress, digestOf } from '../../../src/providers/directory/chunk-codec.ts';
import { freeMemory } from '../../../src/providers/directory/free-memory.ts';
import { chunk, patterned } from './memory-volume.ts';

test.each([1, 512, 4095, 4096, 65_537, chunk])('%i bytes come back', async (length) => {
  const content = Buffer.alloc(length, 'round and round ');
  const compressed = await compress(content);
  if (length > 100) expect(compressed?.length).toBeLessThan(length);
  const bytes = compressed ?? brotliCompressSync(content);
  expect(brotliDecompressSync(bytes).equals(content)).toBe(true);
  expect((await decompress(bytes, length)).equals(content)).toBe(true);
});

test('what does not compress is left as it is', async () => {
  const noise = randomBytes(chunk);
  const before = digestOf(noise);
  expect(await compress(noise)).toBeUndefined();
  expect(digestOf(noise).equals(before)).toBe(true);
  expect(await compress(Buffer.from([7]))).toBeUndefined();
});

test('cut, damaged or overlong input is an error', async () => {
  const content = patterned(chunk, 3);
  const compressed = (await compress(content)) ?? Buffer.alloc(0);
  await expect(decompress(compressed.subarray(0, 1000), chunk)).rejects.toThrow();
  await expect(decompress(compressed, chunk / 2)).rejects.toThrow(/more output than room/);
  await expect(decompress(Buffer.alloc(100, 0xff), chunk)).rejects.toThrow();
});

test('memory is freed where nobody shares it', () => {
  const own = Buffer.allocUnsafeSlow(chunk);
  freeMemory(own);
  expect(own.length).toBe(0);
  const pooled = Buffer.from('in the pool that all small buffers share');
  const part = Buffer.alloc(chunk, 1).subarray(1);
  freeMemory(pooled);
  freeMemory(part);
  expect(pooled.toString()).toContain('in the pool');
  expect(part[0]).toBe(1);
});
