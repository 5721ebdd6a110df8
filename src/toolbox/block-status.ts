import type { NbdConnection } from '../nbd/client.ts';
import { BackupError } from '../protocol/errors.ts';
import type { DataExtent, Extent } from '../sdk/provider.ts';
import { intersect } from './extents.ts';
import { explained } from './nbd-errors.ts';

export const allocation = 'base:allocation';

const flag = { dirty: 1, zero: 2 } as const;
/** Bounds the answer: QEMU's extents have 64 KiB at least, and mostly far more. */
const maxBytes = 1024 * 1024 * 1024;

/** What is dirty of a range, by a dirty bitmap's map. */
export async function* dirtyExtents(
  connection: NbdConnection,
  context: string,
  range: Extent,
): AsyncGenerator<DataExtent> {
  for await (const { flags, ...part } of blockStatus(connection, context, range)) {
    if ((flags & flag.dirty) !== 0) yield { ...part, zero: false };
  }
}

/** Which parts of a range that can be read are zero, as far as the server knows. */
export async function* allocatedExtents(
  connection: NbdConnection,
  range: Extent,
): AsyncGenerator<DataExtent> {
  for await (const { flags, ...part } of blockStatus(connection, allocation, range)) {
    yield { ...part, zero: (flags & flag.zero) !== 0 };
  }
}

/** The block status of a range, one bounded answer after the other. */
async function* blockStatus(
  connection: NbdConnection,
  context: string,
  range: Extent,
): AsyncGenerator<Extent & { flags: number }> {
  const end = range.offset + range.length;
  for (let { offset } = range; offset < end; ) {
    const asked = { offset, length: Math.min(maxBytes, end - offset) };
    const text = `cannot ask for the ${context} map`;
    const answer = await connection
      .blockStatus(context, asked.offset, asked.length)
      .catch((error: unknown) => Promise.reject(explained(error, text)));
    for (const { length, flags } of answer) {
      const part = intersect({ offset, length }, asked);
      if (part === undefined) break;
      yield { ...part, flags };
      offset = part.offset + part.length;
    }
    if (offset === asked.offset) throw new BackupError(`${text}: QEMU's answer is empty`);
  }
}
