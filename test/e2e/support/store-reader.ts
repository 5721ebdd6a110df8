import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { brotliDecompress } from 'node:zlib';

const chunkSize = 4 << 20;
const digestLength = 32;
const unpack = promisify(brotliDecompress);
const archivePattern = /^(?:qemu|lxc)-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/;

/** The SHA-256 of a disk in an archive of the directory store, read without any code of the bridge. */
export async function archivedSha256(store: string, name: string, device: string): Promise<string> {
  const { volumes } = JSON.parse(await readFile(join(store, name, 'archive.json'), 'utf8'));
  const hash = createHash('sha256');
  const digests = await digestsOf(join(store, name, `${device}.index`));
  let left: number = volumes[device].size;
  for (const digest of digests) {
    const length = Math.min(chunkSize, left);
    const content = /^0+$/.test(digest) ? Buffer.alloc(length) : await readChunk(store, digest);
    if (content.length !== length) throw new Error(`chunk ${digest} has ${content.length} bytes`);
    hash.update(content);
    left -= length;
  }
  if (left !== 0) throw new Error(`the index of ${device} in ${name} is ${left} bytes short`);
  return hash.digest('hex');
}

/** The archives of a guest that are listed, by their directories. */
export async function archiveNames(store: string, vmid: number): Promise<string[]> {
  const names = await readdir(join(store, String(vmid))).catch(() => []);
  return names.filter((name) => archivePattern.test(name)).map((name) => `${vmid}/${name}`);
}

/** What a store with no backup under way should not hold: chunks that no archive names, half files. */
export async function strayFiles(store: string, vmids: readonly number[]): Promise<string[]> {
  const named = new Set<string>();
  const stray: string[] = [];
  for (const vmid of vmids) {
    for (const name of await readdir(join(store, String(vmid))).catch(() => [])) {
      const folder = join(store, String(vmid), name);
      if (!archivePattern.test(name)) stray.push(folder);
      const members = await readdir(folder).catch(() => []);
      stray.push(...members.filter((m) => /^run\.|\.tmp$/.test(m)).map((m) => join(folder, m)));
      for (const index of members.filter((m) => m.endsWith('.index'))) {
        for (const digest of await digestsOf(join(folder, index))) named.add(digest);
      }
    }
  }
  for (const folder of await readdir(join(store, 'chunks')).catch(() => [])) {
    for (const name of await readdir(join(store, 'chunks', folder))) {
      if (!named.has(name.replace(/\.br$/, ''))) stray.push(join(store, 'chunks', folder, name));
    }
  }
  return stray;
}

/** The chunks that an index names, in hexadecimal. */
export async function digestsOf(index: string): Promise<string[]> {
  const bytes = await readFile(index);
  const digests: string[] = [];
  for (let at = 0; at < bytes.length; at += digestLength) {
    digests.push(bytes.toString('hex', at, at + digestLength));
  }
  return digests;
}

async function readChunk(store: string, digest: string): Promise<Buffer> {
  const path = join(store, 'chunks', digest.slice(0, 2), digest);
  const content = await readFile(`${path}.br`).then(
    (bytes) => unpack(bytes),
    () => readFile(path),
  );
  if (createHash('sha256').update(content).digest('hex') !== digest) {
    throw new Error(`chunk ${digest} has another content`);
  }
  return content;
}
