import { connect, createServer } from 'node:net';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { Scratch } from '../../fixtures/nbd/scratch.ts';
import { startNbdkit } from '../../fixtures/nbd/servers.ts';
import { connectNbd, NbdError } from '../../src/nbd/client.ts';
import * as encode from '../../src/nbd/reply-message.ts';
import { scratch } from './support.ts';

/** What every session of this file asks for: a bit of everything. */
async function session(socketPath: string, contexts = ['base:allocation']) {
  const handshakeTimeoutMs = 2000;
  const connection = await connectNbd({ socketPath, exportName: '', contexts, handshakeTimeoutMs });
  const results = await Promise.allSettled([
    connection.read(0, 2000),
    contexts.length > 0
      ? connection.blockStatus('base:allocation', 0, 1 << 20)
      : connection.read(1 << 19, 512),
    connection.read(4096, 100_000, { df: false }),
  ]);
  await connection.close();
  return results;
}

/** Passes a session on to `target` and keeps what the server said in it. */
async function record(room: Scratch, target: string, contexts?: string[]): Promise<Buffer> {
  const said: Buffer[] = [];
  const proxy = createServer((client) => {
    const server = connect(target);
    server.on('data', (bytes: Buffer) => said.push(bytes));
    server.on('error', () => client.destroy());
    client.on('error', () => server.destroy());
    client.pipe(server).pipe(client);
  });
  await new Promise<void>((resolve) => proxy.listen(room.path('proxy.sock'), resolve));
  const results = await session(room.path('proxy.sock'), contexts);
  expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled', 'fulfilled']);
  await new Promise((resolve) => proxy.close(resolve));
  return Buffer.concat(said);
}

/** Where the first reply begins. */
function firstReply(said: Buffer): number {
  const places = ['668e33ef', '67446698'].map((magic) => said.indexOf(Buffer.from(magic, 'hex')));
  return Math.min(...places.filter((at) => at > 0));
}

/** Says the same to every client, the replies once it has been asked three times; then it hangs up. */
async function startParrot(room: Scratch) {
  const parrot: { socketPath: string; handshake: Buffer; replies: Buffer | undefined } = {
    socketPath: room.path('parrot.sock'),
    handshake: Buffer.alloc(0),
    replies: undefined,
  };
  const server = createServer((socket) => {
    socket.on('error', () => {});
    const { handshake, replies } = parrot;
    socket.write(handshake);
    if (replies === undefined) {
      socket.resume();
      socket.end();
      return;
    }
    // A client that was told of another size may ask less.
    const patience = setTimeout(() => socket.end(replies), 2000);
    socket.once('close', () => clearTimeout(patience));
    let heard = '';
    socket.on('data', (bytes: Buffer) => {
      heard += bytes.toString('hex');
      if (heard.split('25609513').length > 3 && !socket.writableEnded) socket.end(replies);
    });
  });
  await new Promise<void>((resolve) => server.listen(parrot.socketPath, resolve));
  onTestFinished(async () => {
    await new Promise((resolve) => server.close(resolve));
  });
  return parrot;
}

/** 'ok' or the error of each request, or the one error of the handshake. */
async function outcome(socketPath: string, contexts?: string[]): Promise<unknown[]> {
  const results = await session(socketPath, contexts).catch((error: unknown) => error);
  if (!Array.isArray(results)) return [results];
  return results.map((one) => (one.status === 'fulfilled' ? 'ok' : one.reason));
}

describe('a session of nbdkit, cut at every byte of its handshake and every header', () => {
  test.each([
    ['structured', [], ['base:allocation']],
    ['simple', ['--no-sr'], []],
  ])(
    '%s replies',
    async (_name, args, contexts) => {
      const room = await scratch();
      const server = await startNbdkit(room, ...args, 'pattern', '1M');
      const whole = await record(room, server.socketPath, contexts);
      const start = firstReply(whole);
      const parrot = await startParrot(room);
      parrot.handshake = whole.subarray(0, start);
      parrot.replies = whole.subarray(start);
      expect(await outcome(parrot.socketPath, contexts)).toEqual(['ok', 'ok', 'ok']);
      const cuts = Array.from({ length: whole.length }, (_, i) => i).filter(
        (cut) => cut < start + 100 || (cut > 2000 && cut < 2500) || cut % 4999 === 0,
      );
      for (const cut of [...cuts, whole.length - 1]) {
        parrot.handshake = whole.subarray(0, Math.min(cut, start));
        parrot.replies = cut < start ? undefined : whole.subarray(start, cut);
        const failed = (await outcome(parrot.socketPath, contexts)).filter((one) => one !== 'ok');
        expect(failed.length, `cut at ${cut}`).toBeGreaterThan(0);
        for (const error of failed) expect(error).toMatchObject({ code: 'ECONNRESET' });
      }
    },
    60_000,
  );
});

describe('random bytes end in a clear error', () => {
  const cookie = fc.bigInt({ min: 0n, max: 4n });
  const final = fc.boolean();
  const number = fc.oneof(fc.nat(200_000), fc.nat(0xffff_ffff));
  const chunks = fc.oneof(
    fc
      .record({ cookie, type: fc.oneof(fc.nat(8), fc.nat(0xffff)), length: number, final })
      .map((c) => encode.encodeChunk(c.cookie, c.type, c.length, c)),
    fc
      .record({ cookie, offset: number, length: number, final })
      .map((c) => encode.encodeHoleChunk(c.cookie, c.offset, c.length, c)),
    fc
      .record({ cookie, offset: number, length: fc.nat(3000), final })
      .map((c) =>
        Buffer.concat([
          encode.encodeDataChunk(c.cookie, c.offset, c.length, c),
          Buffer.alloc(c.length),
        ]),
      ),
    fc
      .record({ cookie, errno: fc.nat(120), text: fc.string(), final })
      .map((c) => encode.encodeErrorChunk(c.cookie, c.errno, c.text, c)),
    fc
      .record({ cookie, errno: fc.nat(120) })
      .map((c) => encode.encodeSimpleReply(c.cookie, c.errno)),
    fc.uint8Array({ maxLength: 100 }).map((bytes) => Buffer.from(bytes)),
  );

  test('in the place of replies, flipped bits included', async () => {
    const room = await scratch();
    const server = await startNbdkit(room, 'pattern', '1M');
    const whole = await record(room, server.socketPath);
    const parrot = await startParrot(room);
    const start = firstReply(whole);
    await fc.assert(
      fc.asyncProperty(
        fc.array(chunks, { maxLength: 10 }),
        fc.array(fc.nat(8 * 600), { maxLength: 6 }),
        fc.boolean(),
        async (list, flips, flipOnly) => {
          const says: Buffer = Buffer.from(whole);
          for (const bit of flipOnly ? flips : []) {
            says[bit >> 3] = (says[bit >> 3] ?? 0) ^ (1 << (bit & 7));
          }
          parrot.handshake = says.subarray(0, start);
          parrot.replies = flipOnly ? says.subarray(start) : Buffer.concat(list);
          const started = Date.now();
          for (const one of await outcome(parrot.socketPath)) {
            // Of another size or block size, the requests may not be sent at all.
            const clear = one === 'ok' || one instanceof NbdError || one instanceof RangeError;
            expect(clear, String(one)).toBe(true);
          }
          expect(Date.now() - started).toBeLessThan(5000);
        },
      ),
      { numRuns: 150 },
    );
  }, 60_000);
});
