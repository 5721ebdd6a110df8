import { BackupError, messageOf } from '../protocol/errors.ts';
import type { Params } from '../protocol/methods.ts';
import type { ArchiveInfo, Provider } from '../sdk/provider.ts';
import { makeUpid } from '../toolbox/upid.ts';
import { archiveOf, volnameOf } from './archive.ts';
import type { Context } from './session.ts';

interface Verified {
  readonly volname: string;
  readonly problems: string[];
}

/** Verifies one archive, or all; one that cannot be read does not keep the others from it. */
export async function verify(
  context: Context,
  { volname }: Params<'verify'>,
  signal: AbortSignal,
): Promise<Verified[]> {
  const { provider, log } = context;
  const upid = makeUpid('verify', context.storeid);
  if (volname !== undefined) {
    const problems = await verifyOne(context, volname, { signal, upid });
    if (problems !== undefined) return [report(context, volname, problems)];
    throw new BackupError(`${volname} cannot be verified: it was kept without checksums`);
  }
  const infos = await provider.listArchives({});
  const results: Verified[] = [];
  for (const [position, info] of infos.entries()) {
    signal.throwIfAborted();
    const each = volnameOf(info.name);
    log.info(`verifying ${each} (${position + 1} of ${infos.length})`);
    try {
      const problems = await verifyOne(context, each, { signal, upid });
      if (problems !== undefined) results.push(report(context, each, problems));
      else log.warn(`${each} cannot be verified: it was kept without checksums`);
    } catch (error) {
      if (signal.aborted) throw error;
      if (await isListed(provider, info)) {
        results.push(report(context, each, [messageOf(error)]));
      } else log.info(`${each} was removed meanwhile`);
    }
  }
  return results;
}

/** Undefined if the archive is of a kind that cannot be verified. */
async function verifyOne(
  { provider, log }: Context,
  volname: string,
  options: { signal: AbortSignal; upid: string },
): Promise<string[] | undefined> {
  const archive = await archiveOf(provider, volname);
  return archive.verify?.({ log, ...options });
}

function report({ log }: Context, volname: string, problems: string[]): Verified {
  for (const problem of problems) log.error(`${volname}: ${problem}`);
  if (problems.length === 0) log.info(`${volname}: ok`);
  return { volname, problems };
}

async function isListed(provider: Provider, { name, vmid }: ArchiveInfo): Promise<boolean> {
  return (await provider.listArchives({ vmid })).some((info) => info.name === name);
}
