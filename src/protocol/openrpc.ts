import * as z from 'zod';
import { methods, notifications } from './methods.ts';
import { protocolVersion } from './version.ts';

const schemaOf = (schema: z.ZodType, io: 'input' | 'output') => {
  const { $schema: _, ...json } = z.toJSONSchema(schema, { io, unrepresentable: 'any' });
  return json;
};

/** The wire as an OpenRPC 1.3 document, made from the schemas that the host checks with. */
export function openrpcDocument() {
  return {
    openrpc: '1.3.2',
    info: { title: 'pve-backup-bridge host', version: String(protocolVersion) },
    methods: Object.entries(methods).map(([name, { params, result }]) => ({
      name,
      paramStructure: 'by-name',
      params: [{ name: 'params', required: true, schema: schemaOf(params, 'input') }],
      result: { name: 'result', schema: schemaOf(result, 'output') },
    })),
    // OpenRPC knows no messages from the server to the client.
    'x-notifications': Object.entries(notifications).map(([name, params]) => ({
      name,
      params: [{ name: 'params', required: true, schema: schemaOf(params, 'output') }],
    })),
  };
}
