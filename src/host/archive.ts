import { archiveName } from '../protocol/model.ts';
import type { Archive, Provider } from '../sdk/provider.ts';

const prefix = 'backup/';

/** The archive of a volname. */
export function archiveOf(provider: Provider, volname: string): Promise<Archive> {
  return provider.archive(archiveName.parse(volname.slice(prefix.length)));
}

/** The volname of an archive. */
export function volnameOf(name: string): string {
  return `${prefix}${archiveName.parse(name)}`;
}
