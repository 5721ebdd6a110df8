import { mkdir, readFile } from 'node:fs/promises';
import * as z from 'zod';
import { BackupError, messageOf } from '../protocol/errors.ts';
import type { ProviderDefinition, StorageOption } from '../sdk/define.ts';
import type { NodePaths } from './paths.ts';

/** storage.cfg knows text only: turns `1` and `5` into what the option's schema wants. */
function coerce(value: unknown, schema: z.ZodType | undefined): unknown {
  if (schema === undefined || typeof value === 'boolean') return value;
  const { type } = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' });
  const text = String(value);
  if (type === 'boolean') return text === '1';
  if ((type === 'integer' || type === 'number') && /^-?[0-9.]+$/.test(text)) return Number(text);
  return text;
}

function parseOption(name: string, option: StorageOption, value: unknown): unknown {
  if (value === undefined && !option.optional) {
    throw new BackupError(`storage.cfg lacks '${name}', which this storage type needs`);
  }
  const schema = option.schema;
  if (schema === undefined) return value;
  const parsed = schema.safeParse(value === undefined ? undefined : coerce(value, schema));
  if (parsed.success) return parsed.data;
  const reason = parsed.error.issues[0]?.message ?? 'not valid';
  throw new BackupError(`storage.cfg: '${name}' is not valid: ${reason}`);
}

/** Checks a section of storage.cfg against the provider's options; keys that it does not declare are PVE's. */
export function parseOptions(
  definition: ProviderDefinition,
  scfg: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  const options: Record<string, unknown> = {};
  for (const [name, option] of Object.entries(definition.options)) {
    if (option.secret) continue;
    const value = parseOption(name, option, scfg[name]);
    if (value !== undefined) options[name] = value;
  }
  return options;
}

/** Reads the files in which PVE keeps what must not stand in storage.cfg. */
export async function readSecrets(
  definition: ProviderDefinition,
  paths: NodePaths,
): Promise<Record<string, string>> {
  const secrets: Record<string, string> = {};
  for (const [name, option] of Object.entries(definition.options)) {
    if (!option.secret) continue;
    const text = await readFile(paths.secretFile(name), 'utf8').catch((cause: unknown) => {
      if (option.optional && (cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw new BackupError(`cannot read the secret '${name}': set it with pvesm set --${name}`, {
        cause,
      });
    });
    if (text !== undefined) secrets[name] = text.replace(/\n$/, '');
  }
  return secrets;
}

/** The cluster's name, or the machine's id where there is no cluster. */
export async function readCluster(paths: NodePaths): Promise<string> {
  const corosync = await readFile(paths.corosyncConf, 'utf8').catch(() => '');
  const name = /^\s*cluster_name:\s*(\S+)/m.exec(corosync)?.[1];
  if (name !== undefined) return `cluster ${name}`;
  const id = await readFile(paths.machineId, 'utf8').catch(() => '');
  return `machine ${id.trim() || 'unknown'}`;
}

/** Makes the directories that a storage has on the node. */
export async function makeDirectories(paths: NodePaths): Promise<void> {
  for (const directory of [paths.runDir, paths.cacheDir]) {
    await mkdir(directory, { recursive: true, mode: 0o700 }).catch((cause: unknown) => {
      throw new BackupError(`cannot create ${directory}: ${messageOf(cause)}`, { cause });
    });
  }
}
