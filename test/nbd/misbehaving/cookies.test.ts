import { describe, expect, test } from 'vitest';
import { startPeer } from '../../../fixtures/nbd/peer.ts';
import { command } from '../../../src/nbd/constants.ts';
import {
  encodeChunk,
  encodeErrorChunk,
  encodeHoleChunk,
  encodeSimpleReply,
} from '../../../src/nbd/reply-message.ts';
import { connected, scratch } from '../support.ts';
import { answeredWith, expectBroken } from './transmission.ts';

describe('replies that belong to no request', () => {
  test('a wrong cookie', async () => {
    const connection = await answeredWith(({ cookie }) =>
      encodeHoleChunk(cookie + 1000n, 0, 512, { final: true }),
    );
    await expectBroken(connection, 'never sent', connection.read(0, 512));
  });

  test('a cookie beyond 2^53', async () => {
    const connection = await answeredWith(({ cookie }) => encodeSimpleReply(2n ** 63n + cookie, 0));
    await expectBroken(connection, 'never sent', connection.read(0, 512));
  });

  test('a reply to nothing, on an idle connection', async () => {
    const peer = await startPeer(await scratch(), async (one) => {
      await one.shakeHands();
      one.send(encodeChunk(0n, 0, 0, { final: true }));
    });
    const connection = await connected(peer);
    await new Promise((resolve) => setTimeout(resolve, 50));
    await expect(connection.read(0, 512)).rejects.toMatchObject({
      code: 'EPROTO',
      message: expect.stringContaining('never sent'),
    });
  });

  test('E4: two final chunks for one cookie', async () => {
    const peer = await startPeer(await scratch(), async (one) => {
      await one.shakeHands();
      const { cookie, type } = await one.request();
      expect(type).toBe(command.blockStatus);
      const failed = encodeErrorChunk(cookie, 22, 'cannot', { final: true });
      one.send(failed, failed);
    });
    const connection = await connected({ ...peer, contexts: ['base:allocation'] });
    const [status, read] = await Promise.allSettled([
      connection.blockStatus('base:allocation', 0, 4096),
      connection.read(0, 512),
    ]);
    expect(status).toMatchObject({ reason: { code: 'EINVAL' } });
    expect(read).toMatchObject({
      reason: { code: 'EPROTO', message: expect.stringContaining('after its final one') },
    });
  });
});
