import * as z from 'zod';

/** Raised whenever a shim of the old number could misread a host of the new one. */
export const protocolVersion = 1;

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

export const maxMessageBytes = 64 * 1024 * 1024;
