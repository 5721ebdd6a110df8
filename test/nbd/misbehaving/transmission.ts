import { expect } from 'vitest';
import { type Peer, startPeer } from '../../../fixtures/nbd/peer.ts';
import type { NbdConnection, NbdError } from '../../../src/nbd/client.ts';
import type { Request } from '../../../src/nbd/request-message.ts';
import { connected, scratch } from '../support.ts';

/** What the first request is answered with; later requests get no answer. */
export type Answer = (request: Request, peer: Peer) => Uint8Array | undefined;

/** A connection to a server of 1 MiB with base:allocation that answers its first request so. */
export async function answeredWith(answer: Answer): Promise<NbdConnection> {
  const peer = await startPeer(await scratch(), async (one) => {
    await one.shakeHands();
    const bytes = answer(await one.request(), one);
    if (bytes !== undefined) one.send(bytes);
  });
  return connected({ ...peer, contexts: ['base:allocation'] });
}

/** Every request, made before and after, rejects with one reason, which is that of a broken protocol. */
export async function expectBroken(
  connection: NbdConnection,
  text: string,
  first: Promise<unknown>,
): Promise<void> {
  const bystanders = Array.from({ length: 20 }, (_, i) => connection.read(512 * i, 512));
  const results = await Promise.allSettled([first, ...bystanders]);
  results.push(...(await Promise.allSettled([connection.read(0, 512)])));
  const reasons = results.map((result) =>
    result.status === 'rejected' ? (result.reason as NbdError) : undefined,
  );
  expect(reasons[0]).toMatchObject({ name: 'NbdError', code: 'EPROTO' });
  expect(reasons[0]?.message).toContain(text);
  expect(new Set(reasons).size).toBe(1);
}
