import { connect, type Socket } from 'node:net';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { lengthPrefixed } from '../../src/nbd/bytes.ts';
import { command, option } from '../../src/nbd/constants.ts';
import { encodeOption } from '../../src/nbd/option-message.ts';
import { encodeRequest } from '../../src/nbd/request-message.ts';
import { serveNbd } from '../../src/nbd/server.ts';
import { connected, scratch } from './support.ts';

const size = 64 << 20;

async function served(read = async (_offset: number, length: number) => Buffer.alloc(length, 7)) {
  const room = await scratch();
  const options = { socketPath: room.path('own.sock'), exportName: 'disk' };
  const server = await serveNbd({ ...options, image: { size, read } });
  onTestFinished(() => server.close());
  return options;
}

/** Sends these bytes, collects the answer; resolves when the server hangs up, or after `patience` ms. */
async function converse(socketPath: string, bytes: Uint8Array, patience = 5000) {
  const answer: Buffer[] = [];
  const socket: Socket = connect(socketPath);
  socket.on('data', (piece: Buffer) => answer.push(piece));
  socket.on('error', () => {});
  socket.write(bytes);
  const dropped = await new Promise<boolean>((resolve) => {
    socket.once('close', () => resolve(true));
    setTimeout(() => resolve(false), patience).unref();
  });
  socket.destroy();
  return { dropped, answer: Buffer.concat(answer) };
}

const flags = Buffer.from([0, 0, 0, 3]);
const go = encodeOption(option.go, Buffer.concat([lengthPrefixed('disk'), Buffer.alloc(2)]));
const request = (type: number, offset: number, length: number) =>
  encodeRequest({ flags: 0, type, cookie: 99n, offset, length });
const goodbye = request(command.disconnect, 0, 0);
/** The simple reply to cookie 99 with this error. */
const failure = (errno: number) => `67446698${errno.toString(16).padStart(8, '0')}0000000000000063`;

describe('a client that misbehaves is dropped', () => {
  const hugeOption = encodeOption(option.list);
  hugeOption.writeUInt32BE(0xffff_ffff, 12);
  test.each([
    ['unknown client flags', Buffer.from([0, 0, 0, 7])],
    ['junk in place of an option', Buffer.concat([flags, Buffer.alloc(16, 0x41)])],
    ['an option of 4 GiB', Buffer.concat([flags, hugeOption])],
    [
      'an export that is not there, by its name',
      Buffer.concat([flags, encodeOption(option.exportName, Buffer.from('other'))]),
    ],
    ['junk in place of a request', Buffer.concat([flags, go, Buffer.alloc(28, 0x41)])],
    ['a write of 4 GiB', Buffer.concat([flags, go, request(command.write, 0, 0xffff_ffff)])],
    ['an abort', Buffer.concat([flags, encodeOption(option.abort)])],
    ['a goodbye', Buffer.concat([flags, go, goodbye])],
  ])('%s', async (_name, bytes) => {
    const own = await served();
    expect((await converse(own.socketPath, bytes)).dropped).toBe(true);
    expect((await (await connected(own)).read(0, 512)).length).toBe(512);
  });
});

describe('requests that cannot be served get an error, the connection stays', () => {
  test.each([
    ['write', 1, Buffer.concat([request(command.write, 0, 512), Buffer.alloc(512)])],
    ['trim', 1, request(command.trim, 0, 512)],
    ['write of zeroes', 1, request(command.writeZeroes, 0, 512)],
    ['flush, which is not offered', 22, request(command.flush, 0, 0)],
    ['block status without a context', 22, request(command.blockStatus, 0, 512)],
    ['unknown command', 22, request(77, 0, 512)],
    ['read of nothing', 22, request(command.read, 0, 0)],
    ['read behind the end', 22, request(command.read, size - 1, 2)],
    ['read at 2^53', 22, request(command.read, 2 ** 53 - 1, 512)],
    ['read of more than 32 MiB', 75, request(command.read, 0, (32 << 20) + 1)],
  ])('%s', async (_name, errno, bytes) => {
    const own = await served();
    const all = Buffer.concat([flags, go, bytes, request(command.read, 0, 4), goodbye]);
    const { dropped, answer } = await converse(own.socketPath, all);
    expect(dropped).toBe(true);
    const tail = answer.subarray(-36).toString('hex');
    const failed = failure(errno);
    const succeeded = `${failure(0)}07070707`;
    // The order is free.
    expect([failed + succeeded, succeeded + failed]).toContain(tail);
  });
});

test('a goodbye waits for the replies under way', async () => {
  const own = await served(async (_offset, length) => {
    await new Promise((resolve) => setTimeout(resolve, 100));
    return Buffer.alloc(length, 7);
  });
  const bytes = Buffer.concat([flags, go, request(command.read, 0, 4), goodbye]);
  const { answer } = await converse(own.socketPath, bytes);
  expect(answer.subarray(-20).toString('hex')).toBe(`${failure(0)}07070707`);
});

test('16 requests of a client are under way at a time, of two clients 32', async () => {
  let running = 0;
  let most = 0;
  const own = await served(async (_offset, length) => {
    running += 1;
    most = Math.max(most, running);
    await new Promise((resolve) => setTimeout(resolve, 50));
    running -= 1;
    return Buffer.alloc(length);
  });
  const requests = Array.from({ length: 60 }, () => request(command.read, 0, 512));
  const bytes = Buffer.concat([flags, go, ...requests, goodbye]);
  await converse(own.socketPath, bytes);
  expect(most).toBe(16);
  const both = [converse(own.socketPath, bytes), converse(own.socketPath, bytes)];
  for (const { answer } of await Promise.all(both)) {
    expect(answer.toString('hex').split(failure(0))).toHaveLength(61);
  }
  expect(most).toBe(32);
});

test('a client that asks and never reads: 64 MiB are under way, no more', async () => {
  let asked = 0;
  const own = await served(async (_offset, length) => {
    asked += length;
    return Buffer.alloc(length);
  });
  const socket = connect(own.socketPath);
  onTestFinished(() => void socket.destroy());
  const requests = Array.from({ length: 1000 }, () => request(command.read, 0, 8 << 20));
  socket.write(Buffer.concat([flags, go, ...requests]));
  await expect.poll(() => asked).toBe(64 << 20);
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(asked).toBe(64 << 20);
  // Others are served meanwhile.
  expect((await (await connected(own)).read(0, 512)).length).toBe(512);
});

test('a client that haggles and never reads is dropped', async () => {
  const own = await served();
  const options = Buffer.alloc(4 << 20, encodeOption(option.list));
  const socket = connect(own.socketPath);
  onTestFinished(() => void socket.destroy());
  socket.on('error', () => {});
  const dropped = new Promise((resolve) => socket.once('close', () => resolve('dropped')));
  socket.pause();
  socket.write(Buffer.concat([flags, options]), () => {});
  socket.once('error', () => socket.destroy());
  expect(await dropped).toBe('dropped');
});

test('random bytes never harm the server', async () => {
  const own = await served();
  const start = fc.constantFrom(
    Buffer.alloc(0),
    flags,
    Buffer.concat([flags, encodeOption(option.structuredReply)]),
    Buffer.concat([flags, go]),
  );
  const requests = fc
    .record({
      flags: fc.nat(0xffff),
      type: fc.nat(9),
      cookie: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      offset: fc.nat(size),
      length: fc.nat(100_000),
    })
    .map(encodeRequest);
  const options = fc
    .record({ option: fc.nat(12), data: fc.uint8Array({ maxLength: 64 }) })
    .map((one) => encodeOption(one.option, one.data));
  const noise = fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes));
  await fc.assert(
    fc.asyncProperty(
      start,
      fc.array(fc.oneof(requests, options, noise), { maxLength: 12 }),
      async (head, rest) => {
        const socket = connect(own.socketPath);
        socket.on('error', () => {});
        socket.resume();
        const closed = new Promise((resolve) => socket.once('close', resolve));
        socket.end(Buffer.concat([head, ...rest]));
        await closed;
      },
    ),
    { numRuns: 150 },
  );
  expect((await (await connected(own)).read(0, 512)).length).toBe(512);
});
