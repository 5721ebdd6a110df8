import { describe, expect, test } from 'vitest';
import { isZero } from '../../src/toolbox/zero.ts';

const mib = 1024 * 1024;

describe('zero detection', () => {
  test.each([0, 1, 4095, 4 * mib - 1, 4 * mib, 4 * mib + 1, 9 * mib])('%d zero bytes', (length) => {
    expect(isZero(Buffer.alloc(length))).toBe(true);
  });

  test.each([0, 1, 4 * mib - 1, 4 * mib, 8 * mib, 9 * mib - 1])('one byte at %d', (at) => {
    const data = Buffer.alloc(9 * mib);
    data[at] = 1;
    expect(isZero(data)).toBe(false);
  });
});
