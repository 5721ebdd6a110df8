import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { BackupError } from '../protocol/errors.ts';

/** One section of storage.cfg, its values as they stand there. */
export interface StorageSection {
  readonly type: string;
  readonly properties: Readonly<Record<string, string>>;
}

/** The sections by their ids: `type: id`, then a line `key value` for each property. */
export function parseStorageConfig(text: string): Map<string, StorageSection> {
  const sections = new Map<string, StorageSection>();
  let properties: Record<string, string> = {};
  for (const line of text.split('\n')) {
    const [, type, id] = /^([a-z][\w-]*):\s*(\S+)\s*$/i.exec(line) ?? [];
    const [, key, value = ''] = /^\s+([\w-]+)(?:\s+(.*?))?\s*$/.exec(line) ?? [];
    if (type !== undefined && id !== undefined) {
      properties = {};
      sections.set(id, { type, properties });
    } else if (key !== undefined) {
      // A property without a value is a switch.
      properties[key] = value === '' ? '1' : value;
    }
  }
  return sections;
}

/** The section of a storage; rejects if there is none. */
export async function readStorageSection(root: string, storeid: string): Promise<StorageSection> {
  const path = join(root, '/etc/pve/storage.cfg');
  const text = await readFile(path, 'utf8').catch((cause: unknown) => {
    throw new BackupError(`cannot read ${path}: is this a Proxmox VE node, and are you root?`, {
      cause,
    });
  });
  const section = parseStorageConfig(text).get(storeid);
  if (section === undefined) throw new BackupError(`there is no storage '${storeid}' in ${path}`);
  return section;
}
