import { readFile } from 'node:fs/promises';
import { ask, BenchVm } from './bench-vm.ts';
import type { Result, Row } from './measure.ts';

const GiB = 1024 ** 3;
const limit = 150;
/** What the 1 TiB disk holds is where the small one's data is; the rest has never been written. */
const sizes = { '1 GiB': GiB, '1 TiB': 1024 * GiB } as const;

/** The most memory that a host has had, in MiB. */
async function peak(pid: number | undefined): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/VmHWM:\s+(\d+)/.exec(status)?.[1]) / 1024;
}

async function measure(name: keyof typeof sizes): Promise<Result> {
  const disk = { device: 'drive-scsi0', size: sizes[name] };
  const bench = await BenchVm.start(disk);
  try {
    await bench.vm.fillMixed(disk.device, GiB, 3);
    const host = await bench.openStore('brotli');
    const { archive } = await bench.backUp(host);
    await bench.backUp(host);
    await ask(host, 'restore_vm_init', { volname: `backup/${archive}` });
    await ask(host, 'restore_vm_cleanup', { volname: `backup/${archive}` });
    const ours = await peak(host.child.pid);
    const row = `memory of the host, ${name} disk`;
    const met = ours <= limit;
    return { row, ours, theirs: limit, unit: 'MiB', ratio: limit / ours, target: '>= 1', met };
  } finally {
    await bench.close();
  }
}

export const memoryRow: Row = {
  name: 'memory',
  opponent: `the limit of ${limit} MiB; a full and an incremental backup and a restore's check`,
  async run() {
    return [await measure('1 GiB'), await measure('1 TiB')];
  },
};
