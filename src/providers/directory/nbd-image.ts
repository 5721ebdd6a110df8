import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectNbd, type NbdConnection } from '../../nbd/client.ts';
import type { DataExtent, RawImage } from '../../sdk/provider.ts';
import { allocatedExtents, allocation } from '../../toolbox/block-status.ts';
import { ReleaseStack } from '../../toolbox/release.ts';
import { startProgram } from '../../toolbox/run.ts';

const pollMs = 20;
const startMs = 10_000;

/** An image that `qemu-nbd` decodes. */
class NbdImage implements RawImage {
  readonly size: number;
  readonly #connection: NbdConnection;
  readonly #held: ReleaseStack;

  /** `size` as the header says it: qemu-nbd rounds an export up to whole sectors. */
  constructor(size: number, connection: NbdConnection, held: ReleaseStack) {
    this.size = size;
    this.#connection = connection;
    this.#held = held;
  }

  read(offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array> {
    return this.#connection.read(offset, length, signal === undefined ? {} : { signal });
  }

  async extents(offset: number, length: number): Promise<DataExtent[]> {
    if (!this.#connection.contexts.has(allocation)) return [{ offset, length, zero: false }];
    const extents: DataExtent[] = [];
    for await (const part of allocatedExtents(this.#connection, { offset, length })) {
      extents.push(part);
    }
    return extents;
  }

  close(): Promise<void> {
    return this.#held.release();
  }
}

/** Serves an image read-only with `qemu-nbd`; `image` is a file name as QEMU takes it, the socket lies in `runDir`. */
export async function openNbdImage(
  image: string,
  size: number,
  runDir: string,
  signal: AbortSignal,
): Promise<RawImage> {
  const held = new ReleaseStack();
  try {
    const directory = await mkdtemp(join(runDir, 'q-'));
    held.add('the socket', () => rm(directory, { recursive: true, force: true }));
    const socketPath = join(directory, 's');
    const program = await startProgram('qemu-nbd', [
      '--read-only',
      '--persistent',
      `--socket=${socketPath}`,
      image,
    ]);
    held.add('qemu-nbd', () => program.stop());
    const connection = await connectWhenUp(socketPath, program.exited, signal);
    held.add('the connection', () => connection.close());
    // Nobody else connects; a host that is killed leaves nothing.
    await rm(directory, { recursive: true, force: true });
    return new NbdImage(size, connection, held);
  } catch (error) {
    await held.release().catch(() => undefined);
    throw error;
  }
}

async function connectWhenUp(
  socketPath: string,
  exited: Promise<void>,
  signal: AbortSignal,
): Promise<NbdConnection> {
  const deadline = performance.now() + startMs;
  const ended = exited.then(() => {
    throw new Error('qemu-nbd ended by itself');
  });
  ended.catch(() => undefined);
  for (;;) {
    try {
      const options = { socketPath, exportName: '', contexts: [allocation], signal };
      return await Promise.race([connectNbd(options), ended]);
    } catch (error) {
      await Promise.race([sleep(pollMs), ended]);
      if (signal.aborted || performance.now() > deadline) throw error;
    }
  }
}
