import { BackupError } from '../../protocol/errors.ts';
import type { Archive } from '../../sdk/provider.ts';
import { openBridgeArchive } from './archive.ts';
import { openExampleArchive } from './example-archive.ts';
import { codeOf } from './files.ts';
import { parseArchiveName } from './layout.ts';
import type { Store } from './store.ts';

/** Opens an archive of either format. */
export async function openArchive(store: Store, name: string): Promise<Archive> {
  const parsed = parseArchiveName(name);
  if (parsed === undefined) throw new BackupError(`'${name}' is no archive name of this storage`);
  const open = parsed.origin === 'bridge' ? openBridgeArchive : openExampleArchive;
  try {
    return await open(store, name, parsed);
  } catch (cause) {
    if (codeOf(cause) !== 'ENOENT' && codeOf(cause) !== 'ENOTDIR') throw cause;
    throw new BackupError(`there is no archive ${name} in ${store.layout.path}`, { cause });
  }
}
