import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { BitmapLedger, DataExtent } from '../../../src/sdk/provider.ts';
import {
  backUp,
  chunk,
  chunkFiles,
  emptyLedger,
  extent,
  listNames,
  MemoryVolume,
  makeStorage,
  patterned,
  removeArchive,
  restore,
} from './setup.ts';

/** A disk of two and a bit chunks keeps the runs short. */
const size = 2 * chunk + 3 * 65536;
const unit = 65536;
const units = size / unit;

const write = fc.record({
  at: fc.nat(units - 1),
  length: fc.integer({ min: 1, max: 12 }),
  seed: fc.nat(3),
});
const step = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('backup' as const),
      writes: fc.array(write, { maxLength: 3 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('loseBitmap' as const) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('remove' as const), which: fc.nat(5) }) },
);

/** Ascending, disjoint; neighbours may touch. */
function extentsOf(dirty: readonly boolean[]): DataExtent[] {
  return dirty.flatMap((is, at) => (is ? [extent(at * unit, unit)] : []));
}

test('after any sequence of backups, lost bitmaps and removals all archives restore bit for bit', async () => {
  const property = fc.asyncProperty(
    fc.array(step, { minLength: 2, maxLength: 7 }),
    async (steps) => {
      const storage = await makeStorage({ 'bridge-dir-compression': 'none' });
      const { provider } = storage;
      const disk = patterned(size, 99);
      const archives = new Map<string, Buffer>();
      let dirty = Array<boolean>(units).fill(false);
      let ledger: BitmapLedger = emptyLedger;
      for (const each of steps) {
        if (each.kind === 'loseBitmap') {
          ledger = emptyLedger;
        } else if (each.kind === 'remove') {
          const name = [...archives.keys()][each.which % Math.max(archives.size, 1)];
          if (name === undefined) continue;
          await removeArchive(provider, name);
          archives.delete(name);
        } else {
          for (const { at, length, seed } of each.writes) {
            const end = Math.min(at + length, units);
            // Seed 0 writes zeroes, the others content that comes again.
            const data = patterned((end - at) * unit, seed);
            if (seed === 0) data.fill(0);
            data.copy(disk, at * unit);
            dirty.fill(true, at, end);
          }
          const volume = new MemoryVolume('drive-scsi0', disk);
          const planned = (plan: ReadonlyMap<string, string>) => {
            if (plan.get('drive-scsi0') === 'use') volume.dirty = extentsOf(dirty);
          };
          const done = await backUp(storage, [volume], { ledger, planned });
          archives.set(done.backup.archiveName, Buffer.from(disk));
          ({ ledger } = done);
          dirty = Array<boolean>(units).fill(false);
        }
        expect(await listNames(provider)).toEqual([...archives.keys()].sort());
      }
      for (const [name, content] of archives) {
        expect((await restore(provider, name, 'drive-scsi0')).equals(content)).toBe(true);
      }
      for (const name of archives.keys()) await removeArchive(provider, name);
      await provider.endJob?.();
      expect(await chunkFiles(storage.path)).toEqual([]);
    },
  );
  await fc.assert(property, { numRuns: 12 });
}, 120_000);
