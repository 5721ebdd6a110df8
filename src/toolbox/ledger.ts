import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import * as z from 'zod';
import type { BitmapLedger, DeviceName } from '../sdk/provider.ts';
import { processStartTime } from './processes.ts';

/** A guest on a storage; `root` comes before every path of the node. */
export interface LedgerKey {
  readonly root: string;
  readonly storeid: string;
  readonly vmid: number;
}

const record = z.object({
  version: z.literal(1),
  storeid: z.string(),
  vmid: z.int(),
  qemu: z.object({ pid: z.int().positive(), startTime: z.int().nonnegative() }),
  /** Only devices that were backed up with a bitmap. */
  devices: z.record(
    z.string(),
    z.object({ archiveId: z.string().min(1), size: z.int().nonnegative() }),
  ),
});
/** More devices than a VM can have; a longer file is not ours. */
const maxLength = 1024 * 1024;
type LedgerRecord = z.infer<typeof record>;

/**
 * What consumed the guest's dirty bitmaps last. QEMU finds bitmaps by name and knows nothing of archives
 * [E9]: this file does, and only for the QEMU process that runs now. Damaged or missing: nothing is held.
 */
export async function openLedger(key: LedgerKey): Promise<BitmapLedger> {
  const { storeid, vmid } = key;
  const text = await readFile(pathOf(key), 'utf8').catch(() => '');
  const found = record.safeParse(text.length > maxLength ? undefined : parse(text)).data;
  const qemu = await runningQemu(key);
  const valid =
    found?.storeid === storeid &&
    found.vmid === vmid &&
    qemu !== undefined &&
    found.qemu.pid === qemu.pid &&
    found.qemu.startTime === qemu.startTime;
  const devices = new Map(valid ? Object.entries(found.devices) : []);
  return {
    holds(device, size, archiveId) {
      const entry = devices.get(device);
      return entry?.archiveId === archiveId && entry.size === size;
    },
  };
}

/**
 * Notes that `archiveId` consumed the bitmaps of `volumes` (their sizes in bytes). To be called after the
 * commit and before `backup_vm` returns [B15]; devices that are not named are forgotten.
 */
export async function recordBitmaps(
  key: LedgerKey & { archiveId: string; volumes: ReadonlyMap<DeviceName, number> },
): Promise<void> {
  const { storeid, vmid, archiveId, volumes } = key;
  const path = pathOf(key);
  const qemu = await runningQemu(key);
  if (qemu === undefined || volumes.size === 0) return rm(path, { force: true });
  const devices = Object.fromEntries(
    [...volumes].map(([name, size]) => [name, { archiveId, size }]),
  );
  const text: LedgerRecord = { version: 1, storeid, vmid, qemu, devices };
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const draft = `${path}.${process.pid}`;
  await writeFile(draft, `${JSON.stringify(text)}\n`, { mode: 0o600 });
  await rename(draft, path);
}

function pathOf({ root, storeid, vmid }: LedgerKey): string {
  return join(`${root}/run/pve-backup-bridge/bitmaps`, storeid, `${vmid}.json`);
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

async function runningQemu({ root, vmid }: LedgerKey): Promise<LedgerRecord['qemu'] | undefined> {
  const text = await readFile(`${root}/run/qemu-server/${vmid}.pid`, 'utf8').catch(() => '');
  const pid = Number(/^\s*(\d+)\s*$/.exec(text)?.[1]);
  if (!Number.isSafeInteger(pid) || pid < 1) return undefined;
  const startTime = await processStartTime(pid);
  return startTime === undefined ? undefined : { pid, startTime };
}
