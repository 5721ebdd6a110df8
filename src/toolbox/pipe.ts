import { closeSync, constants, openSync, readSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { run } from './run.ts';

/** A pipe of the kernel for programs; what Node gives them by itself is a socket. */
export interface Pipe {
  readonly reader: number;
  readonly writer: number;
  /** The reading end, for this process: what has come is read every few milliseconds. */
  stream(): Readable;
  /** Once the programs run, or they would not learn of each other's end. */
  close(): void;
}

/** Node cannot make a pipe: this is a FIFO, opened from both ends, whose name is gone again. */
export async function openPipe(): Promise<Pipe> {
  const folder = await mkdtemp(join(tmpdir(), 'pve-backup-bridge-'));
  const own = new Set<number>();
  const close = () => {
    for (const fd of own) closeSync(fd);
    own.clear();
  };
  const take = (path: string, flags: number) => {
    const fd = openSync(path, flags);
    own.add(fd);
    return fd;
  };
  try {
    const path = join(folder, 'pipe');
    await run('mkfifo', ['--mode=600', path]);
    // Opening one end alone would wait for the other.
    const both = openSync(path, constants.O_RDWR);
    try {
      const reader = take(path, constants.O_RDONLY);
      const writer = take(path, constants.O_WRONLY);
      return { reader, writer, stream: () => poll(reader), close };
    } finally {
      closeSync(both);
    }
  } catch (error) {
    close();
    throw error;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

const size = 64 * 1024;
const pollMs = 10;

/** For many short lines: being woken for each of them would take longer than writing them. */
function poll(reader: number): Readable {
  const fd = openSync(`/proc/self/fd/${reader}`, constants.O_RDONLY | constants.O_NONBLOCK);
  const data = Buffer.allocUnsafe(size);
  let timer: NodeJS.Timeout | undefined;
  const look = (stream: Readable) => {
    try {
      const length = readSync(fd, data);
      stream.push(length === 0 ? null : Buffer.from(data.subarray(0, length)));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') stream.destroy(error as Error);
      else timer = setTimeout(look, pollMs, stream);
    }
  };
  return new Readable({
    read() {
      timer = setTimeout(look, pollMs, this);
    },
    destroy(error, done) {
      clearTimeout(timer);
      closeSync(fd);
      done(error);
    },
  });
}
