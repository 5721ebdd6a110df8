import * as z from 'zod';
import { commonOptions, type ProviderDefinition, type StorageOption } from './define.ts';

/** What PVE::JSONSchema knows of JSON Schema. */
const pveKeys = [
  'type',
  'enum',
  'description',
  'default',
  'minimum',
  'maximum',
  'minLength',
  'maxLength',
  'pattern',
] as const;

/** provider.json, from which the shim tells PVE of a storage type without starting a host. */
export interface Manifest {
  readonly type: string;
  readonly title: string;
  readonly version: string;
  readonly 'archive-name': string;
  readonly properties: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  readonly options: Readonly<Record<string, { fixed?: 1; optional?: 1 }>>;
  readonly sensitive: readonly string[];
}

/** A zod schema in the dialect of PVE::JSONSchema. */
function property(name: string, schema: z.ZodType): Record<string, unknown> {
  const { $schema: _, ...json } = z.toJSONSchema(schema, { io: 'input' });
  const kept = pveKeys.filter((key) => json[key] !== undefined).map((key) => [key, json[key]]);
  if (json.type === undefined || json.type === 'object' || json.type === 'array') {
    throw new TypeError(`option '${name}' is not a string, number or boolean`);
  }
  if (json.description === undefined) throw new TypeError(`option '${name}' has no description`);
  return Object.fromEntries(kept);
}

const traits = ({ fixed, optional }: StorageOption) => ({
  ...(fixed && { fixed: 1 as const }),
  ...(optional && { optional: 1 as const }),
});

/** The manifest of a provider; throws a TypeError on what PVE could not express. */
export function manifestOf(definition: ProviderDefinition): Manifest {
  const { type, title, version, archiveName } = definition;
  const options = Object.entries({ ...commonOptions, ...definition.options });
  const own = options.flatMap(([name, { schema }]) =>
    schema === undefined ? [] : [[name, property(name, schema)] as const],
  );
  return {
    type,
    title,
    version,
    'archive-name': archiveName,
    properties: Object.fromEntries(own),
    options: Object.fromEntries(options.map(([name, option]) => [name, traits(option)])),
    sensitive: options.filter(([, option]) => option.secret).map(([name]) => name),
  };
}
