import { exportImage } from '../../../src/toolbox/image-export.ts';
import { LogLines } from './log.ts';

const size = 1024 * 1024;
const { path } = await exportImage(
  {
    size,
    read: async (offset, length) => Buffer.alloc(length, offset % 251),
    close: async () => undefined,
  },
  {
    directory: process.argv[2] ?? '',
    name: 'drive-scsi0.raw',
    signal: new AbortController().signal,
    log: new LogLines(),
  },
);
process.stdout.write(`${path}\n`);
setInterval(() => undefined, 1000);
