import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { ask, BenchVm, type Compression, syncDisks } from './bench-vm.ts';
import { inTurn, type Result, type Row, timed } from './measure.ts';

const MiB = 1024 * 1024;
const rounds = 5;
const least = 0.7;
const disk = { device: 'drive-scsi0', size: 1024 * MiB, seed: 9 };

async function convert(bench: BenchVm, source: string): Promise<void> {
  const target = join(bench.root, 'restored.raw');
  await execa('truncate', ['-s', String(disk.size), target]);
  await execa('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, target]);
}

async function measure(bench: BenchVm, compression: Compression): Promise<Result> {
  const host = await bench.openStore(compression);
  const { archive } = await bench.backUp(host);
  // QEMU holds a lock on the disk itself.
  const image = join(bench.root, 'image.raw');
  await execa('cp', ['--sparse=auto', bench.vm.diskPath(disk.device), image]);
  const volname = `backup/${archive}`;
  const volume = { volname, 'device-name': disk.device };
  const clean = async () => {
    await rm(join(bench.root, 'restored.raw'), { force: true });
    await syncDisks(bench.root);
  };
  const restore = async () => {
    await clean();
    return timed(async () => {
      await ask(host, 'restore_vm_init', { volname });
      const { 'qemu-img-path': path } = await ask(host, 'restore_vm_volume_init', volume);
      await convert(bench, String(path));
      await ask(host, 'restore_vm_cleanup', { volname });
    });
  };
  const plain = async () => {
    await clean();
    return timed(() => convert(bench, image));
  };
  const seconds = await inTurn(rounds, restore, plain);
  const ours = disk.size / MiB / seconds.ours;
  const theirs = disk.size / MiB / seconds.theirs;
  const ratio = ours / theirs;
  const row = `restore through qemu-img, ${compression}`;
  return { row, ours, theirs, unit: 'MiB/s', ratio, target: `>= ${least}`, met: ratio >= least };
}

export const restoreRow: Row = {
  name: 'restore',
  opponent: 'qemu-img convert from the same image as a raw file',
  async run() {
    const bench = await BenchVm.start(disk);
    try {
      return [await measure(bench, 'none'), await measure(bench, 'brotli')];
    } finally {
      await bench.close();
    }
  },
};
