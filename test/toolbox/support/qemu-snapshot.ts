import { once } from 'node:events';
import { mkdtemp, open, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { execa } from 'execa';
import { connectNbd } from '../../../src/nbd/client.ts';

const device = 'drive-scsi0';
export const bitmapName = 'snapshot-access:store';

/**
 * One disk with snapshot access in a real qemu-storage-daemon: a dirty bitmap of 4 MiB, copy-before-write
 * into a fleecing file, and the export as QEMU offers it to a backup.
 */
export async function qemuSnapshot(options: {
  /** What the disk holds before the bitmap begins. */
  disk: Buffer;
  /** Written before the snapshot, under the bitmap; absent: there is no bitmap. */
  dirty?: readonly { offset: number; data: Buffer }[];
  /** The store behind the fleecing image takes nothing. */
  fleecingFull?: boolean;
}) {
  const directory = await mkdtemp(join(tmpdir(), 'qemu-snapshot-'));
  const path = (name: string) => join(directory, name);
  const { disk, dirty, fleecingFull = false } = options;
  for (const name of ['disk', 'fleecing']) {
    const file = await open(path(name), 'w');
    await file.truncate(disk.length);
    // Zeroes stay holes.
    for (let at = 0; name === 'disk' && at < disk.length; at += 65536) {
      const part = disk.subarray(at, at + 65536);
      if (part.some((byte) => byte !== 0)) await file.write(part, 0, part.length, at);
    }
    await file.close();
  }
  const daemon = execa(
    'qemu-storage-daemon',
    ['--chardev', 'stdio,id=qmp', '--monitor', 'chardev=qmp'],
    { reject: false, stdin: 'pipe' },
  );
  const lines = createInterface({ input: daemon.stdout })[Symbol.asyncIterator]();
  const qmp = async (execute: string, args: Record<string, unknown> = {}) => {
    daemon.stdin.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    for (;;) {
      const { value, done } = await lines.next();
      if (done === true) throw new Error(`QEMU ended: ${(await daemon).stderr}`);
      const answer: { return?: unknown; error?: { desc: string } } = JSON.parse(value);
      if (answer.error !== undefined) throw new Error(`${execute}: ${answer.error.desc}`);
      if ('return' in answer) return answer.return;
    }
  };
  const add = (node: Record<string, unknown>) => qmp('blockdev-add', node);
  const bitmap = { node: 'f0', name: bitmapName };
  const serve = (name: string, node: string, more: Record<string, unknown> = {}) =>
    qmp('block-export-add', {
      ...{ id: name, name, type: 'nbd', 'node-name': node, writable: true },
      ...more,
    });
  const socketPath = path('nbd.sock');
  await qmp('qmp_capabilities');
  const file = (name: string) => ({ driver: 'file', filename: path(name), discard: 'unmap' });
  await add({ ...file('disk'), 'node-name': 'e0' });
  await add({ driver: 'raw', file: 'e0', 'node-name': 'f0', discard: 'unmap' });
  const addr = { type: 'unix', data: { path: socketPath } };
  await qmp('nbd-server-start', { addr, 'max-connections': 10 });

  const write = async (name: string, offset: number, data: Buffer) => {
    const connection = await connectNbd({ socketPath, exportName: name });
    await connection.write(offset, data);
    await connection.close();
  };
  if (dirty !== undefined) {
    await qmp('block-dirty-bitmap-add', { ...bitmap, granularity: 4 * 1024 * 1024 });
    await serve('before', 'f0');
    for (const { offset, data } of dirty) await write('before', offset, data);
    await qmp('block-export-del', { id: 'before', mode: 'hard' });
    await qmp('block-dirty-bitmap-disable', bitmap);
  }
  const full = {
    driver: 'blkdebug',
    image: 'fl0',
    'inject-error': [{ event: 'pwritev', errno: 28 }],
  };
  await add({ ...file('fleecing'), 'node-name': 'fl0' });
  await add({
    ...(fleecingFull ? full : { driver: 'raw', file: 'fl0', discard: 'unmap' }),
    'node-name': 'fleecing',
  });
  await add({
    ...{ driver: 'copy-before-write', file: 'f0', target: 'fleecing', 'node-name': 'cbw0' },
    'on-cbw-error': 'break-snapshot',
    ...(dirty !== undefined && { bitmap }),
  });
  await add({
    ...{ driver: 'snapshot-access', file: 'cbw0', 'node-name': 'sa0', discard: 'unmap' },
  });
  // QEMU before 8.0 takes the disk's new bytes for a cluster in the fleecing image that is followed, within
  // one read, by a cluster that is not: give it one cluster at a time.
  await add({
    ...{ driver: 'blkdebug', image: 'sa0', 'node-name': 'split0', discard: 'unmap' },
    'max-transfer': 65536,
  });
  await serve(device, 'split0', dirty === undefined ? {} : { bitmaps: [bitmap] });
  await serve('guest', 'cbw0');

  return {
    device,
    socketPath,
    size: disk.length,
    /** What the disk holds at the snapshot. */
    snapshot: dirty === undefined ? disk : patched(disk, dirty),
    /** Writes as the guest, after the snapshot. */
    guestWrite: (offset: number, data: Buffer) => write('guest', offset, data),
    fleecingBytes: async () => (await stat(path('fleecing'))).blocks * 512,
    isAlive: () => daemon.exitCode === null,
    async close() {
      if (daemon.exitCode === null) {
        const exit = once(daemon, 'exit');
        daemon.kill('SIGTERM');
        await exit;
      }
      await rm(directory, { recursive: true });
    },
  };
}

function patched(disk: Buffer, writes: readonly { offset: number; data: Buffer }[]): Buffer {
  const copy = Buffer.from(disk);
  for (const { offset, data } of writes) data.copy(copy, offset);
  return copy;
}
