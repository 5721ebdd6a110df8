import { describe, expect, test } from 'vitest';
import { startPeer } from '../../../fixtures/nbd/peer.ts';
import { command } from '../../../src/nbd/constants.ts';
import { encodeDataChunk, encodeErrorChunk } from '../../../src/nbd/reply-message.ts';
import { connected, scratch } from '../support.ts';
import { answeredWith } from './transmission.ts';

describe('a server that goes while requests wait', () => {
  test('all of them, queued ones too, reject with the same reason', async () => {
    const connection = await answeredWith((_request, peer) => {
      peer.hangUp();
      return undefined;
    });
    const reads = Array.from({ length: 40 }, (_, i) => connection.read(512 * i, 512));
    const results = await Promise.allSettled(reads);
    const reasons = new Set(results.map((r) => (r.status === 'rejected' ? r.reason : undefined)));
    expect(reasons.size).toBe(1);
    expect([...reasons][0]).toMatchObject({ code: 'ECONNRESET' });
  });

  test('in the middle of data', async () => {
    const connection = await answeredWith(({ cookie }, peer) => {
      const head = encodeDataChunk(cookie, 0, 512 * 1024, { final: true });
      peer.send(head, Buffer.alloc(300 * 1024));
      peer.hangUp();
      return undefined;
    });
    await expect(connection.read(0, 512 * 1024)).rejects.toMatchObject({ code: 'ECONNRESET' });
  });

  test('ESHUTDOWN: the rest is given up and the client says goodbye', async () => {
    let goodbye: number | undefined;
    const peer = await startPeer(await scratch(), async (one) => {
      await one.shakeHands();
      const { cookie } = await one.request();
      one.send(encodeErrorChunk(cookie, 108, '', { final: true }));
      do {
        goodbye = (await one.request()).type;
      } while (goodbye !== command.disconnect);
      one.hangUp();
    });
    const connection = await connected(peer);
    const results = await Promise.allSettled([connection.read(0, 512), connection.read(0, 512)]);
    expect(results).toMatchObject([
      { reason: { code: 'ESHUTDOWN' } },
      { reason: { code: 'ESHUTDOWN' } },
    ]);
    await connection.close();
    expect(goodbye).toBe(command.disconnect);
  });
});
