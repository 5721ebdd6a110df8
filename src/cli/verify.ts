import { parseArgs } from 'node:util';
import { messageOf } from '../protocol/errors.ts';
import { storeid as storeidSchema, volname as volnameSchema } from '../protocol/model.ts';
import { type Command, exitStatus, UsageError } from './command.ts';
import { HostProcess } from './host-process.ts';
import { readStorageSection } from './storage-config.ts';

const usage = `usage: pve-backup-bridge verify STOREID [ARCHIVE] [--json] [--root DIR]

Reads one archive of a storage, or all, and compares everything in it with its SHA-256.
ARCHIVE is a name as 'pvesm list' shows it, with or without 'STOREID:backup/'.

  --json      print the result as JSON, and progress on stderr
  --root DIR  read DIR/etc/pve/storage.cfg, for tests
  --help      print this

exit status: 0 all is good, 1 a fault was found, 2 wrong usage or it cannot run
`;

interface Request {
  readonly storeid: string;
  readonly volname?: string;
  readonly json: boolean;
  readonly root: string;
}

function parse(args: readonly string[]): Request | 'help' {
  const options = {
    json: { type: 'boolean', default: false },
    root: { type: 'string', default: '' },
    help: { type: 'boolean', default: false },
  } as const;
  const { values, positionals } = (() => {
    try {
      return parseArgs({ args: [...args], options, allowPositionals: true });
    } catch (error) {
      throw new UsageError(messageOf(error));
    }
  })();
  if (values.help) return 'help';
  const [storeid, archive, ...rest] = positionals;
  if (storeid === undefined) throw new UsageError('no storage was named');
  if (rest.length > 0) throw new UsageError('one archive at a time, or all');
  if (!storeidSchema.safeParse(storeid).success) {
    throw new UsageError(`'${storeid}' is no id of a storage`);
  }
  const { json, root } = values;
  if (archive === undefined) return { storeid, json, root };
  const name = archive.startsWith(`${storeid}:`) ? archive.slice(storeid.length + 1) : archive;
  const volname = `backup/${name.replace(/^backup\//, '')}`;
  if (!volnameSchema.safeParse(volname).success) {
    throw new UsageError(`'${archive}' is no name of an archive`);
  }
  return { storeid, volname, json, root };
}

/** Cancels the work when the user or the system wants this process to end. */
function cancelOnSignal(host: HostProcess): () => void {
  const cancel = () => void host.cancel().catch(() => undefined);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, cancel);
  return () => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.off(signal, cancel);
  };
}

async function verify(request: Request): Promise<number> {
  const { storeid, volname, json, root } = request;
  const section = await readStorageSection(root, storeid);
  const print = json ? console.error : console.log;
  const onLog = (level: string, message: string) =>
    print(level === 'info' ? message : `${level === 'warn' ? 'WARNING' : 'ERROR'}: ${message}`);
  const host = await HostProcess.open({ root, storeid, section, onLog });
  const release = cancelOnSignal(host);
  try {
    const results = await host.call('verify', volname === undefined ? {} : { volname });
    const failed = results.filter(({ problems }) => problems.length > 0);
    const archives = results.map((result) => ({
      volid: `${storeid}:${result.volname}`,
      state: result.problems.length === 0 ? 'ok' : 'failed',
      problems: result.problems,
    }));
    if (json) console.log(JSON.stringify(archives));
    else console.log(`${results.length} archives verified, ${failed.length} of them damaged`);
    return failed.length === 0 ? exitStatus.good : exitStatus.faultFound;
  } finally {
    release();
    await host.close();
  }
}

export const verifyCommand: Command = {
  usage,
  async run(args) {
    const request = parse(args);
    if (request !== 'help') return verify(request);
    console.log(usage.trimEnd());
    return exitStatus.good;
  },
};
