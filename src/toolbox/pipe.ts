import { constants } from 'node:fs';
import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from './run.ts';

/** A pipe of the kernel for two programs: the bytes never pass through this process. */
export interface Pipe {
  readonly reader: FileHandle;
  readonly writer: FileHandle;
  /** Once both programs run, or they would not learn of each other's end. */
  close(): Promise<void>;
}

/** Node cannot make a pipe: this is a FIFO, opened from both ends, whose name is gone again. */
export async function openPipe(): Promise<Pipe> {
  const folder = await mkdtemp(join(tmpdir(), 'pve-backup-bridge-'));
  const handles: FileHandle[] = [];
  const close = async () => {
    for (const handle of handles.splice(0)) await handle.close();
  };
  const take = async (path: string, flags: number) => {
    const handle = await open(path, flags);
    handles.push(handle);
    return handle;
  };
  try {
    const path = join(folder, 'pipe');
    await run('mkfifo', ['--mode=600', path]);
    // Opening one end alone would wait for the other.
    const both = await open(path, constants.O_RDWR);
    try {
      const reader = await take(path, constants.O_RDONLY);
      const writer = await take(path, constants.O_WRONLY);
      return { reader, writer, close };
    } finally {
      await both.close();
    }
  } catch (error) {
    await close();
    throw error;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
