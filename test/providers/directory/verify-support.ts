import { readFile, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import type { ArchiveInfo, Provider } from '../../../src/sdk/provider.ts';
import { makeUpid } from '../../../src/toolbox/upid.ts';
import { makeLog } from './memory-volume.ts';

/** Verifies one archive as the host does. */
export async function verifyOne(
  provider: Provider,
  name: string,
  { signal = new AbortController().signal } = {},
): Promise<string[]> {
  const upid = makeUpid('verify', 'store');
  const archive = await provider.archive(name);
  return (await archive.verify?.({ log: makeLog(), signal, upid })) ?? ['cannot be verified'];
}

/** Verifies all as the host does; the problems of those that have any. */
export async function verifyAll(provider: Provider): Promise<Record<string, string[]>> {
  const { signal } = new AbortController();
  const found: Record<string, string[]> = {};
  for (const { name } of await provider.listArchives({})) {
    const problems = await verifyOne(provider, name, { signal });
    if (problems.length > 0) found[name] = problems;
  }
  return found;
}

/** Per archive what the list says of its last verification. */
export async function states(provider: Provider): Promise<Record<string, string | undefined>> {
  const infos: ArchiveInfo[] = await provider.listArchives({});
  return Object.fromEntries(infos.map(({ name, verification }) => [name, verification?.state]));
}

export async function flipBit(path: string): Promise<void> {
  const content = await readFile(path);
  const at = content.length >> 1;
  content.writeUInt8(content.readUInt8(at) ^ 4, at);
  await writeFile(path, content);
}

/** What may happen to a file of the store. */
export const damages: Record<string, (path: string) => Promise<void>> = {
  'a flipped bit': flipBit,
  truncated: async (path) => truncate(path, (await readFile(path)).length >> 1),
  emptied: (path) => truncate(path, 0),
  missing: (path) => rm(path),
  'replaced by a link': async (path) => {
    await rename(path, `${path}.away`);
    await symlink(`${path}.away`, path);
  },
};

/** Undoes any of them, also where the damaged file was set aside. */
export async function repair(path: string, content: Buffer): Promise<void> {
  await rm(`${path}.away`, { force: true });
  await rm(path, { force: true });
  await writeFile(path, content);
}
