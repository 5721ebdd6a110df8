import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { BenchVm, type Compression, syncDisks } from './bench-vm.ts';
import { inTurn, median, type Row, timed } from './measure.ts';

const MiB = 1024 * 1024;
const rounds = 5;
const disk = { device: 'drive-scsi0', size: 1024 * MiB, seed: 7 };

/** The least speed of a full backup as a multiple of qemu-img's, and qemu-img's matching compression. */
const opponents = {
  none: { least: 0.9, options: [] },
  brotli: { least: 1.5, options: ['-c', '-o', 'compression_type=zstd'] },
} as const;

async function fullBackup(bench: BenchVm, compression: Compression): Promise<number> {
  const host = await bench.openStore(compression);
  await syncDisks(bench.root);
  const { seconds } = await bench.backUp(host);
  return seconds;
}

async function convert(bench: BenchVm, options: readonly string[]): Promise<number> {
  const target = join(bench.root, 'opponent.qcow2');
  const uri = `nbd+unix:///${disk.device}?socket=${bench.socket}`;
  await bench.closeStore();
  await syncDisks(bench.root);
  try {
    return await bench.withAccess('new', () =>
      timed(async () => {
        await execa('qemu-img', ['convert', '-O', 'qcow2', ...options, uri, target]);
        await syncDisks(bench.root);
      }),
    );
  } finally {
    await rm(target, { force: true });
  }
}

/** A full backup into an empty store, to the durable commit, the source discarded as it goes. */
export function fullRow(compression: Compression): Row {
  const { least, options } = opponents[compression];
  const opponent = `qemu-img convert ${options.join(' ')} from NBD to qcow2, and sync`;
  return {
    name: `full-${compression}`,
    opponent,
    async run() {
      const bench = await BenchVm.start(disk);
      try {
        const seconds = await inTurn(
          rounds,
          () => fullBackup(bench, compression),
          () => convert(bench, options),
        );
        const ours = disk.size / MiB / seconds.ours;
        const theirs = disk.size / MiB / seconds.theirs;
        const ratio = ours / theirs;
        const row = `full backup, bridge-dir ${compression}`;
        const target = `>= ${least}`;
        return [{ row, ours, theirs, unit: 'MiB/s', ratio, target, met: ratio >= least }];
      } finally {
        await bench.close();
      }
    },
  };
}

/** An incremental backup with 1 % of the disk dirty, against our own full one. */
export const incrementalRow: Row = {
  name: 'incremental',
  opponent: 'our own full backup',
  async run() {
    const bench = await BenchVm.start(disk);
    const dirtyBlocks = Math.ceil(disk.size / 100 / (4 * MiB));
    const times = { full: [] as number[], incremental: [] as number[] };
    let readsDirty = true;
    try {
      for (let round = 0; round <= rounds; round++) {
        const host = await bench.openStore('brotli');
        const full = await bench.backUp(host);
        for (let i = 0; i < dirtyBlocks; i++) {
          const offset = (i * 83 + round) * 4 * MiB;
          await bench.vm.write(disk.device, offset, { pattern: 1 + round, length: MiB });
        }
        const incremental = await bench.backUp(host);
        readsDirty &&= (await bench.lastRead()) === bench.vm.dirtyBytes(disk.device);
        if (round === 0) continue;
        times.full.push(full.seconds);
        times.incremental.push(incremental.seconds);
      }
    } finally {
      await bench.close();
    }
    const ours = median(times.incremental);
    const theirs = median(times.full);
    const met = readsDirty && ours <= 0.03 * theirs + 0.5;
    const target = 'bytes read = bytes dirty, <= 3 % + 0.5 s';
    return [
      { row: 'incremental, 1 % dirty', ours, theirs, unit: 's', ratio: theirs / ours, target, met },
    ];
  },
};
