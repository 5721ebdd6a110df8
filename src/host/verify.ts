import { BackupError, messageOf } from '../protocol/errors.ts';
import type { Params } from '../protocol/methods.ts';
import { archiveOf, volnameOf } from './archive.ts';
import type { Context } from './session.ts';

/** Verifies one archive, or all; one that cannot be read does not keep the others from it. */
export async function verify(
  { provider, title, log }: Context,
  { volname }: Params<'verify'>,
  signal: AbortSignal,
): Promise<{ volname: string; problems: string[] }[]> {
  const volnames = volname === undefined ? await allOf(provider) : [volname];
  const results = [];
  for (const name of volnames) {
    signal.throwIfAborted();
    const problems = await verifyOne(name).catch((error: unknown) => [messageOf(error)]);
    results.push({ volname: name, problems });
  }
  return results;

  async function verifyOne(name: string): Promise<string[]> {
    const archive = await archiveOf(provider, name);
    if (archive.verify === undefined) throw new BackupError(`${title} does not verify archives`);
    return archive.verify({ log, signal, upid: `pve-backup-bridge:${process.pid}` });
  }
}

async function allOf(provider: Context['provider']): Promise<string[]> {
  return (await provider.listArchives({})).map(({ name }) => volnameOf(name));
}
