import { describe, expect, test } from 'vitest';
import { startPeer } from '../../../fixtures/nbd/peer.ts';
import { connectNbd } from '../../../src/nbd/client.ts';
import { encodeGreeting, serverHandshake } from '../../../src/nbd/server-handshake.ts';
import { scratch } from '../support.ts';

describe('a server that hangs up in the handshake', () => {
  // The replies of a whole handshake with contexts are four sends behind the greeting.
  for (let step = 0; step <= 6; step += 1) {
    test(`after ${step} messages`, async () => {
      const peer = await startPeer(await scratch(), async (one) => {
        let sent = 0;
        const send = (bytes: Buffer) => {
          if (sent < step) one.send(bytes);
          sent += 1;
          if (sent >= step) one.hangUp();
        };
        send(encodeGreeting());
        const about = { exportName: 'disk', size: 4096, allocation: true, send };
        await one.receive(serverHandshake(about));
      });
      const connecting = connectNbd({ ...peer, contexts: ['base:allocation'] });
      await expect(connecting).rejects.toMatchObject({ name: 'NbdError', code: 'ECONNRESET' });
    });
  }
});

test('nobody listens', async () => {
  const room = await scratch();
  const connecting = connectNbd({ socketPath: room.path('none.sock'), exportName: 'disk' });
  await expect(connecting).rejects.toMatchObject({ name: 'NbdError', code: 'ENOENT' });
});

test('a socket path that the kernel would cut', async () => {
  const connecting = connectNbd({ socketPath: `/${'x'.repeat(107)}`, exportName: 'disk' });
  await expect(connecting).rejects.toThrow(RangeError);
});
