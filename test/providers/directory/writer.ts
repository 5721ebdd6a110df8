import definition from '../../../src/providers/directory/index.ts';
import { chunk, emptyLedger, MemoryVolume, makeLog, patterned } from './memory-volume.ts';

/** A backup of eight chunks in a process of its own, which says when the fifth is read and then gets slow. */
const [path = '', runDir = ''] = process.argv.slice(2);
const provider = definition.open({
  id: 'store',
  options: { path },
  secrets: {},
  log: makeLog(),
  cluster: 'cluster one',
  runDir,
  cacheDir: runDir,
  signal: new AbortController().signal,
});
const disk = Buffer.concat([...Array(8).keys()].map((seed) => patterned(chunk, 50 + seed)));
const volume = new MemoryVolume('drive-scsi0', disk);
const read = volume.read.bind(volume);
volume.read = async (offset, length) => {
  if (offset >= 5 * chunk) {
    process.stdout.write('writing\n');
    await new Promise((resolve) => setTimeout(resolve, 600_000));
  }
  return read(offset, length);
};
const startTime = new Date('2026-11-23T12:00:00Z');
const backup = await provider.backupVm?.({ vmid: 100, vmtype: 'qemu', startTime });
await backup?.planBitmaps(new Map([['drive-scsi0', disk.length]]), emptyLedger);
await backup?.run({
  guestConfig: Buffer.from('name: dead\n'),
  volumes: new Map([['drive-scsi0', volume]]),
  log: makeLog(),
  signal: new AbortController().signal,
});
