import { execa } from 'execa';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { mergeExtents } from '../../src/toolbox/extents.ts';
import { assertNoneFailed } from '../../src/toolbox/file-volume-nbdinfo.ts';
import { DirtyRegions } from '../../src/toolbox/file-volume-regions.ts';
import { collect } from './support/extents.ts';

const volume = { device: 'drive-scsi0', size: 10_000_000 };

/** Gives each region once. */
function once(regions: readonly (readonly [number, number])[]) {
  const left = [...regions];
  const asked: number[] = [];
  return {
    asked,
    next: async (max: number) => {
      asked.push(max);
      return left.splice(0, max);
    },
  };
}

test.each([0, 1, 999, 1000, 1001, 2500])(
  '%i regions, gone through twice at a time',
  async (count) => {
    const all = Array.from({ length: count }, (_, i) => [i * 100, 50] as const);
    const { next, asked } = once(all);
    const regions = new DirtyRegions(volume, next);
    const expected = all.map(([offset, length]) => ({ offset, length, zero: false }));
    const [first, second] = await Promise.all([
      collect(regions.extents()),
      collect(regions.extents()),
    ]);
    expect(first).toEqual(expected);
    expect(second).toEqual(expected);
    expect(await collect(regions.extents())).toEqual(expected);
    expect(asked).toHaveLength(Math.floor(count / 1000) + 1);
  },
);

test('whatever is dirty, the extents are the same bytes', async () => {
  const pairs = fc.array(fc.tuple(fc.nat(5), fc.integer({ min: 1, max: 9 })), { maxLength: 30 });
  await fc.assert(
    fc.asyncProperty(pairs, async (rows) => {
      let at = 0;
      const all = rows.map(([gap, length]) => {
        const offset = at + gap;
        at = offset + length;
        return [offset, length] as const;
      });
      const merged = await collect(
        mergeExtents(new DirtyRegions(volume, once(all).next).extents()),
      );
      const bytes = (list: readonly (readonly [number, number])[]) =>
        list.flatMap(([offset, length]) => Array.from({ length }, (_, i) => offset + i));
      expect(bytes(merged.map(({ offset, length }) => [offset, length] as const))).toEqual(
        bytes(all),
      );
    }),
  );
});

test.each([
  [
    'unsorted',
    [
      [100, 10],
      [50, 10],
    ],
  ],
  [
    'overlapping',
    [
      [100, 10],
      [105, 10],
    ],
  ],
  ['empty', [[100, 0]]],
  ['beyond the end', [[9_999_999, 2]]],
] as const)('regions that are %s end the backup', async (_, list) => {
  const regions = new DirtyRegions(volume, once(list).next);
  await expect(collect(regions.extents())).rejects.toThrow('is out of order or beyond');
});

test('a failure stays one: the regions of that answer do not come again', async () => {
  let calls = 0;
  const regions = new DirtyRegions(volume, async () => {
    calls += 1;
    if (calls === 1) throw new Error('interrupted');
    return [];
  });
  await expect(collect(regions.extents())).rejects.toThrow('interrupted');
  await expect(collect(regions.extents())).rejects.toThrow('interrupted');
});

test('B7: a list that its reader cut short is not taken for all', async () => {
  const parent = execa(
    'perl',
    [
      '-e',
      '$0 = "p"; $| = 1; if (!fork) { open(F, ">", "/proc/self/comm"); print F "nbdinfo"; close F; exit $ARGV[0] } sleep 1; print "x"; <STDIN>',
      '3',
    ],
    { stdin: 'pipe' },
  );
  await new Promise((resolve) => parent.stdout.once('data', resolve));
  const check = () => assertNoneFailed(parent.pid ?? 0, 'nbdinfo');
  const regions = new DirtyRegions(volume, async () => [[0, 10]], check);
  await expect(collect(regions.extents())).rejects.toThrow('nbdinfo failed (exit status 3)');
  await assertNoneFailed(parent.pid ?? 0, 'another');
  parent.stdin.end('\n');
  await parent;
});
