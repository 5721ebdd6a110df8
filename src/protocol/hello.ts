import * as z from 'zod';
import { protocolVersion } from './version.ts';

/** The first line of a host, before anything is asked of it. */
export const hello = z.object({
  jsonrpc: z.literal('2.0'),
  method: z.literal('hello'),
  params: z.object({
    protocol: z.literal(protocolVersion),
    provider: z.string(),
    version: z.string(),
  }),
});
