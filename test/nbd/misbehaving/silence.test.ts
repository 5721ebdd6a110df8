import { describe, expect, test } from 'vitest';
import { startPeer } from '../../../fixtures/nbd/peer.ts';
import { connectNbd } from '../../../src/nbd/client.ts';
import { encodeGreeting } from '../../../src/nbd/server-handshake.ts';
import { connected, scratch } from '../support.ts';

describe('a server that falls silent', () => {
  for (const [name, script] of [
    ['at once', () => {}],
    ['after its greeting', (peer: { send(bytes: Buffer): void }) => peer.send(encodeGreeting())],
  ] as const) {
    test(`${name}: the handshake times out`, async () => {
      const peer = await startPeer(await scratch(), script);
      await expect(connectNbd({ ...peer, handshakeTimeoutMs: 100 })).rejects.toMatchObject({
        code: 'ETIMEDOUT',
        message: expect.stringContaining('did not answer within 100 ms'),
      });
    });
  }

  test('a signal ends the handshake with its reason', async () => {
    const peer = await startPeer(await scratch(), () => {});
    const controller = new AbortController();
    const connecting = connectNbd({ ...peer, signal: controller.signal });
    const reason = new Error('enough');
    setTimeout(() => controller.abort(reason), 20);
    await expect(connecting).rejects.toBe(reason);
    await expect(connectNbd({ ...peer, signal: controller.signal })).rejects.toBe(reason);
  });

  test('in transmission: close ends what waits, and itself within 2 s', async () => {
    const peer = await startPeer(await scratch(), async (one) => {
      await one.shakeHands();
    });
    // It neither answers nor hangs up: its script is over, its socket stays open.
    const connection = await connected(peer);
    const read = connection.read(0, 512);
    const started = Date.now();
    const closing = connection.close();
    await expect(read).rejects.toMatchObject({ code: 'ESHUTDOWN' });
    await closing;
    expect(Date.now() - started).toBeLessThan(5000);
    await expect(connection.read(0, 512)).rejects.toMatchObject({ code: 'ESHUTDOWN' });
    await connection.close();
  });
});
