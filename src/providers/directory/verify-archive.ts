import { lstat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { isBackupError, messageOf } from '../../protocol/errors.ts';
import type { Archive } from '../../sdk/provider.ts';
import { abortable } from '../../toolbox/abort.ts';
import { formatBytes } from '../../toolbox/bytes.ts';
import type { Lock } from '../../toolbox/lock.ts';
import { readIndex } from './archive-members.ts';
import { type ArchiveRecord, readRecord } from './archive-record.ts';
import { ifMissing, storeError } from './files.ts';
import { member } from './layout.ts';
import type { Store } from './store.ts';
import { verifyDisk } from './verify-disk.ts';
import { faultOf, verifyFiles } from './verify-files.ts';
import { VerifyProgress } from './verify-progress.ts';
import { writeVerification } from './verify-result.ts';

type Options = Parameters<NonNullable<Archive['verify']>>[0];

/** So that no chunk is swept meanwhile; one archive at a time, to let a sweep in between. */
async function shareLock(store: Store, signal: AbortSignal): Promise<Lock> {
  const lock = store.share();
  try {
    return await abortable(lock, signal);
  } catch (error) {
    lock.then((late) => late.release()).catch(() => undefined);
    throw error;
  }
}

/** Reads the record, which proves itself; undefined and a line if it does not. */
async function verifyRecord(
  store: Store,
  name: string,
): Promise<{ record?: ArchiveRecord; problems: string[] }> {
  try {
    return { record: await readRecord(store.layout, name), problems: [] };
  } catch (error) {
    return { problems: [faultOf(member.record, error)] };
  }
}

async function verifyContent(
  store: Store,
  name: string,
  record: ArchiveRecord,
  options: Options,
): Promise<string[]> {
  const { log, signal } = options;
  const disks = Object.entries(record.volumes);
  const total = disks.reduce((sum, [, { size }]) => sum + size, record.container?.size ?? 0);
  const progress = new VerifyProgress(total, log);
  const problems = await verifyFiles(store.layout, name, record, (file, bytes) => {
    signal.throwIfAborted();
    if (file === record.container?.tar) progress.add(bytes, bytes);
  });
  signal.throwIfAborted();
  for (const [device, { size }] of disks) {
    try {
      const index = await readIndex(store.layout, name, device, record);
      problems.push(...(await verifyDisk(store, { device, index }, progress, options)));
    } catch (error) {
      if (signal.aborted) throw error;
      problems.push(faultOf(member.index(device), error));
      progress.add(size, 0);
    }
  }
  const { read, seconds } = progress;
  log.info(`read ${formatBytes(read)} of ${formatBytes(total)} in ${Math.round(seconds)} seconds`);
  return problems;
}

/** Reads all that belongs to an archive and keeps the result with it; a line for each fault. */
export async function verifyArchive(
  store: Store,
  name: string,
  options: Options,
): Promise<string[]> {
  const { log, signal, upid } = options;
  const { layout } = store;
  const directory = layout.archive(name);
  const isThere = async () => (await lstat(directory).catch(ifMissing)) !== undefined;
  const lock = await shareLock(store, signal);
  try {
    const { record, problems } = await verifyRecord(store, name);
    if (record !== undefined) problems.push(...(await verifyContent(store, name, record, options)));
    if (!(await isThere())) return wasRemoved();
    await keep(problems);
    return problems;
  } catch (error) {
    if (signal.aborted || isBackupError(error)) throw error;
    if (!(await isThere())) return wasRemoved();
    throw storeError(layout.path, `cannot verify archive ${name}`, error);
  } finally {
    await lock.release();
  }

  async function keep(problems: string[]): Promise<void> {
    try {
      await writeVerification(layout, name, upid, problems);
      if (problems.length === 0) await unlink(join(directory, member.damaged)).catch(ifMissing);
    } catch (error) {
      log.warn(`the result for archive ${name} cannot be kept: ${messageOf(error)}`);
    }
  }

  function wasRemoved(): string[] {
    log.info(`archive ${name} was removed meanwhile`);
    return [];
  }
}
