import type * as z from 'zod';
import type { Provider, Storage } from './provider.ts';

/** One property of a storage.cfg section. */
export interface StorageOption {
  /** Of the value as it stands in storage.cfg; its description is what `pvesm` shows. Core ones have none. */
  readonly schema?: z.ZodType;
  /** Cannot be changed once the storage exists. */
  readonly fixed: boolean;
  readonly optional: boolean;
  /** Kept in a file of its own that only root reads, never in storage.cfg. */
  readonly secret: boolean;
}

const option = (schema: z.ZodType, traits: Partial<StorageOption>): StorageOption => ({
  schema,
  fixed: false,
  optional: schema.safeParse(undefined).success,
  secret: false,
  ...traits,
});

/** An option that may be changed later; optional if its schema accepts undefined. */
export const changeable = (schema: z.ZodType): StorageOption => option(schema, {});
/** An option that is set once, with `pvesm add`. */
export const fixed = (schema: z.ZodType): StorageOption => option(schema, { fixed: true });
/** A password or key; an option of its own in `pvesm`, a file on disk. */
export const secret = (schema: z.ZodType): StorageOption => option(schema, { secret: true });

const coreOption = (traits: Partial<StorageOption>): StorageOption => ({
  fixed: false,
  optional: true,
  secret: false,
  ...traits,
});

/** Properties that PVE defines already: defining one again breaks every storage of the node [D2]. */
export const core = {
  path: coreOption({ fixed: true, optional: false }),
  server: coreOption({ optional: false }),
  port: coreOption({}),
  username: coreOption({}),
  password: coreOption({ secret: true }),
} as const;

/** What every bridge storage has besides its provider's own options. */
export const commonOptions: Readonly<Record<string, StorageOption>> = {
  nodes: coreOption({}),
  disable: coreOption({}),
  content: coreOption({}),
  shared: coreOption({}),
  bwlimit: coreOption({}),
  'prune-backups': coreOption({}),
  'max-protected-backups': coreOption({}),
};

/** A provider as its module exports it by default. */
export interface ProviderDefinition {
  /** storage.cfg type; the provider's own options start with it and a dash. */
  readonly type: string;
  /** For the task log. */
  readonly title: string;
  readonly version: string;
  /** How `{vmid}`, `{vmtype}` and `{time}` make an archive name; the shim parses names by it. */
  readonly archiveName: string;
  readonly options: Readonly<Record<string, StorageOption>>;
  /** No I/O yet: a process that only asks for a name must not wait for a store. */
  open(storage: Storage): Provider;
}

/** Checks a definition and returns it: a wrong name would otherwise break every storage of the node [D2]. */
export function defineProvider(definition: ProviderDefinition): ProviderDefinition {
  const { type, archiveName, options } = definition;
  if (!/^[a-z][a-z0-9-]{1,62}[a-z0-9]$/.test(type)) {
    throw new TypeError(`provider type '${type}' is not lower-case letters, digits and dashes`);
  }
  for (const part of ['{vmid}', '{vmtype}', '{time}']) {
    if (!archiveName.includes(part)) throw new TypeError(`archiveName of '${type}' lacks ${part}`);
  }
  for (const [name, { schema }] of Object.entries(options)) {
    if (schema !== undefined && !name.startsWith(`${type}-`)) {
      throw new TypeError(`option '${name}' of provider '${type}' must start with '${type}-'`);
    }
  }
  return definition;
}
