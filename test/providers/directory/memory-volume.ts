import type { BitmapLedger, DataExtent, Logger, VolumeSource } from '../../../src/sdk/provider.ts';

export const MiB = 1024 * 1024;
export const chunk = 4 * MiB;

export function makeLog(): Logger & { lines: string[] } {
  const lines: string[] = [];
  const take = (level: string) => (message: string) => void lines.push(`${level} ${message}`);
  return {
    lines,
    info: take('info'),
    warn: take('warn'),
    error: take('err'),
    debug: take('debug'),
  };
}

/** A disk in memory, which refuses to be read outside of its extents [E3] and remembers what was read. */
export class MemoryVolume implements VolumeSource {
  readonly device: string;
  readonly data: Buffer;
  dirty: readonly DataExtent[];
  readonly bitmapMode: VolumeSource['bitmapMode'];
  bytesRead = 0;
  readonly discarded: { offset: number; length: number }[] = [];

  constructor(device: string, data: Buffer, dirty?: readonly DataExtent[]) {
    this.device = device;
    this.data = data;
    this.dirty = dirty ?? [{ offset: 0, length: data.length, zero: false }];
    this.bitmapMode = dirty === undefined ? 'new' : 'reuse';
  }

  get size(): number {
    return this.data.length;
  }

  async *extents(): AsyncGenerator<DataExtent> {
    for (const extent of this.dirty) if (extent.length > 0) yield extent;
  }

  async read(offset: number, length: number): Promise<Buffer> {
    let end = offset;
    for (const each of this.dirty) {
      if (each.offset <= end) end = Math.max(end, each.offset + each.length);
    }
    const inside = offset + length <= end;
    if (!inside) throw new Error(`EINVAL: ${offset}+${length} is clean`);
    this.bytesRead += length;
    return Buffer.from(this.data.subarray(offset, offset + length));
  }

  async discard(offset: number, length: number): Promise<void> {
    this.discarded.push({ offset, length });
  }
}

export const extent = (offset: number, length: number, zero = false): DataExtent => ({
  offset,
  length,
  zero,
});

/** What the host's ledger would hold after a backup of these devices. */
export function ledgerOf(
  entries: Record<string, { archiveId: string; size: number }>,
): BitmapLedger {
  return {
    holds: (device, size, archiveId) =>
      entries[device]?.archiveId === archiveId && entries[device].size === size,
  };
}

export const emptyLedger = ledgerOf({});

/** Bytes of a pattern that differs with `seed` and does not compress to nothing. */
export function patterned(length: number, seed: number): Buffer {
  const data = Buffer.alloc(length);
  let state = (seed * 2654435761 + 1) >>> 0;
  for (let at = 0; at + 4 <= length; at += 4) {
    // Every second word is noise, so that brotli has something to do.
    if (at % 8 === 0) {
      state ^= (state << 13) >>> 0;
      state = (state ^ (state >>> 17)) >>> 0;
      state = (state ^ (state << 5)) >>> 0;
      data.writeUInt32LE(state, at);
    } else {
      data.writeUInt32LE(seed, at);
    }
  }
  return data;
}
