import { randomUUID } from 'node:crypto';
import { stat } from 'node:fs/promises';
import * as z from 'zod';
import { BackupError, messageOf } from '../../protocol/errors.ts';
import { ifMissing, makeDirectory, readBounded, writeAtomically } from './files.ts';
import type { Layout } from './layout.ts';

const format = 1;
const maxStoreFile = 64 * 1024;

/** Read before anything else, so that a format of later days is told from a damaged file. */
const anyFormat = z.object({ format: z.int() });
const storeFile = z.object({
  format: z.literal(format),
  /** Of the store, for as long as it exists. */
  id: z.uuid(),
  /** The cluster, or the node in none, that used the store first; its guests are the store's. */
  cluster: z.string().min(1).max(256),
});

type StoreFile = z.output<typeof storeFile>;

/** Undefined for a directory that is no store yet. */
async function readStoreFile(layout: Layout): Promise<StoreFile | undefined> {
  const text = await readBounded(layout.storeFile, maxStoreFile).catch(ifMissing);
  if (text === undefined) return undefined;
  try {
    const json: unknown = JSON.parse(text.toString());
    const version = anyFormat.parse(json).format;
    if (version > format) {
      throw new BackupError(
        `the store ${layout.path} has format ${version}, this version knows up to ${format}: upgrade it`,
      );
    }
    return storeFile.parse(json);
  } catch (cause) {
    if (cause instanceof BackupError) throw cause;
    throw new BackupError(`${layout.storeFile} is damaged: restore it from another copy`, {
      cause,
    });
  }
}

/** Who asks: this cluster, and the one that it agreed to share the store with. */
export interface StoreUser {
  readonly cluster: string;
  readonly sharedWith: string | undefined;
}

function refuseStrangers(layout: Layout, store: StoreFile, user: StoreUser): void {
  const { cluster } = store;
  if (cluster === user.cluster) return;
  const name = cluster.slice(cluster.indexOf(' ') + 1);
  if (user.sharedWith === cluster || user.sharedWith === name) return;
  throw new BackupError(
    `the store ${layout.path} belongs to ${cluster}, this is ${user.cluster}: use another path, or, if no ` +
      `guest id is used in both, set bridge-dir-shared-with-cluster to ${name}`,
  );
}

/** True if there is a store at the path, which must be a directory; rejects if it is not for this user. */
export async function checkStore(layout: Layout, user: StoreUser): Promise<boolean> {
  const stats = await stat(layout.path).catch((cause: unknown) => {
    const reason = ifMissingText(cause);
    throw new BackupError(`directory ${layout.path} ${reason}`, { cause });
  });
  if (!stats.isDirectory()) throw new BackupError(`${layout.path} is not a directory`);
  const store = await readStoreFile(layout);
  if (store !== undefined) refuseStrangers(layout, store, user);
  return store !== undefined;
}

function ifMissingText(error: unknown): string {
  try {
    ifMissing(error);
    return 'does not exist: is its file system mounted?';
  } catch {
    return `cannot be read: ${messageOf(error)}`;
  }
}

/** The store's own id, under whatever path it is found. */
export async function storeId(layout: Layout): Promise<string> {
  const store = await readStoreFile(layout);
  if (store !== undefined) return store.id;
  throw new BackupError(`${layout.path} is no store yet: the first backup makes it one`);
}

/** Makes the directory a store; the caller holds a lock against others that do the same. */
export async function initialiseStore(layout: Layout, user: StoreUser): Promise<void> {
  await makeDirectory(layout.chunks);
  const store: StoreFile = { format, id: randomUUID(), cluster: user.cluster };
  await writeAtomically(layout.storeFile, `${JSON.stringify(store, null, 2)}\n`);
}
