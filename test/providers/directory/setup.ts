import { randomUUID } from 'node:crypto';
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import definition from '../../../src/providers/directory/index.ts';
import type { BitmapLedger, Provider, VmBackup, VolumeSource } from '../../../src/sdk/provider.ts';
import { emptyLedger, ledgerOf, MiB, makeLog } from './memory-volume.ts';

export * from './memory-volume.ts';

/** A directory that goes with the test. */
export async function makeTemporary(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'bridge-dir-'));
  onTestFinished(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

export interface Opened {
  readonly provider: Provider;
  readonly path: string;
  readonly runDir: string;
  readonly log: ReturnType<typeof makeLog>;
  readonly abort: AbortController;
}

/** Opens a storage as the host does. */
export async function openStorage(
  path: string,
  options: Record<string, unknown> = {},
  cluster = 'cluster one',
): Promise<Opened> {
  const log = makeLog();
  const abort = new AbortController();
  const runDir = await makeTemporary();
  const provider = definition.open({
    id: 'store',
    options: { path, ...options },
    secrets: {},
    log,
    cluster,
    runDir,
    cacheDir: runDir,
    signal: abort.signal,
  });
  return { provider, path, runDir, log, abort };
}

export async function makeStorage(options: Record<string, unknown> = {}): Promise<Opened> {
  const path = join(await makeTemporary(), 'store');
  await mkdir(path);
  return openStorage(path, options);
}

let seconds = Date.UTC(2026, 10, 23, 10, 0, 0) / 1000;

export interface Done {
  readonly backup: VmBackup;
  readonly plan: Map<string, string>;
  readonly ledger: BitmapLedger;
  readonly archiveSize: number;
}

export interface BackupOptions {
  readonly vmid?: number;
  readonly ledger?: BitmapLedger;
  readonly startTime?: Date;
  readonly guestConfig?: Uint8Array;
  readonly firewallConfig?: Uint8Array;
  readonly signal?: AbortSignal;
  /** Called between the plan and the run, when QEMU sets the snapshot up. */
  readonly planned?: (plan: ReadonlyMap<string, string>) => void;
}

/** A whole backup of a VM, in the host's order. */
export async function backUp(
  { provider, log }: Opened,
  volumes: readonly VolumeSource[],
  options: BackupOptions = {},
): Promise<Done> {
  const startTime = options.startTime ?? new Date(++seconds * 1000);
  const guest = { vmid: options.vmid ?? 100, vmtype: 'qemu', startTime } as const;
  const backup = await provider.backupVm?.(guest);
  if (backup === undefined) throw new Error('no VM backup');
  let success = false;
  try {
    const sizes = new Map(volumes.map((volume) => [volume.device, volume.size]));
    const plan = await backup.planBitmaps(sizes, options.ledger ?? emptyLedger);
    options.planned?.(plan);
    await backup.run({
      guestConfig: options.guestConfig ?? Buffer.from(`name: test-${randomUUID()}\n`),
      ...(options.firewallConfig !== undefined && { firewallConfig: options.firewallConfig }),
      volumes: new Map(volumes.map((volume) => [volume.device, volume])),
      log,
      signal: options.signal ?? new AbortController().signal,
    });
    success = true;
    const { archiveSize } = await backup.finish({ success });
    const { archiveId } = backup;
    const ledger = ledgerOf(
      Object.fromEntries([...sizes].map(([device, size]) => [device, { archiveId, size }])),
    );
    return { backup, plan, ledger, archiveSize };
  } finally {
    if (!success) await backup.finish({ success });
  }
}

/** Restores one device and returns its content. */
export async function restore(provider: Provider, name: string, device: string): Promise<Buffer> {
  const archive = await provider.archive(name);
  const opened = await archive.restoreVm?.();
  if (opened === undefined) throw new Error('no VM restore');
  try {
    const image = await opened.openVolume(device);
    const content = Buffer.alloc(image.size);
    const step = 3 * MiB + 4096;
    for (let at = 0; at < image.size; at += step) {
      content.set(await image.read(at, Math.min(step, image.size - at)), at);
    }
    await image.close();
    return content;
  } finally {
    await opened.close();
  }
}

/** Removes an archive and frees its space, as PVE does one after the other [D7]. */
export async function removeArchive(provider: Provider, name: string): Promise<void> {
  await (await provider.archive(name)).remove();
  await provider.reclaim?.();
}

/** Names of archives in the list, sorted. */
export async function listNames(provider: Provider, vmid?: number): Promise<string[]> {
  const infos = await provider.listArchives(vmid === undefined ? {} : { vmid });
  return infos.map((info) => info.name).sort();
}

/** Paths of all files below a directory. */
export async function filesIn(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { withFileTypes: true });
  const found = entries.map((entry) => {
    const path = join(directory, entry.name);
    return entry.isDirectory() ? filesIn(path) : [path];
  });
  return (await Promise.all(found)).flat().sort();
}

/** None before the first backup. */
export const chunkFiles = (path: string): Promise<string[]> =>
  filesIn(join(path, 'chunks')).catch(() => []);
