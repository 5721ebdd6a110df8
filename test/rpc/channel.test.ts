import { Duplex } from 'node:stream';
import { expect, test } from 'vitest';
import { BackupError } from '../../src/protocol/errors.ts';
import { Channel } from '../../src/rpc/channel.ts';

/** A shim at the other end of a channel: what it sends, and the lines that come back. */
function connect(options: { stalled?: boolean; dropsGarbage?: boolean } = {}) {
  const received: string[] = [];
  const reasons: string[] = [];
  const stream = new Duplex({
    read() {},
    write(chunk: Buffer, _encoding, done) {
      received.push(...chunk.toString().split('\n').filter(Boolean));
      if (!options.stalled) done();
    },
  });
  const channel = new Channel(stream, (reason) => reasons.push(reason.message), options);
  const settle = () => new Promise((resolve) => setTimeout(resolve, 100));
  return {
    channel,
    reasons,
    messages: async () => {
      await settle();
      return received.map((line) => JSON.parse(line));
    },
    send: (text: string) => stream.push(text),
    end: () => stream.push(null),
  };
}

const request = (id: number, method: string, params = {}) =>
  `${JSON.stringify({ jsonrpc: '2.0', id, method, params })}\n`;

test('answers come in the order of completion, each with its id', async () => {
  const { channel, send, messages } = connect();
  channel.serve('slow', () => new Promise((resolve) => setTimeout(() => resolve('slow'), 5)));
  channel.serve('fast', async () => 'fast');
  send(request(1, 'slow') + request(2, 'fast'));
  expect(await messages()).toEqual([
    { jsonrpc: '2.0', id: 2, result: 'fast' },
    { jsonrpc: '2.0', id: 1, result: 'slow' },
  ]);
});

test('A8: a line that its writer could not finish is dropped where that is to be expected', async () => {
  const { channel, send, messages } = connect({ dropsGarbage: true });
  channel.serve('fast', async () => 'fast');
  send(`{"jsonrpc":"2.0","id":1,"met\n\n${request(2, 'fast')}`);
  expect(await messages()).toEqual([{ jsonrpc: '2.0', id: 2, result: 'fast' }]);
});

test('a BackupError crosses with its code and cause, anything else as a fault of the provider', async () => {
  const { channel, send, messages } = connect();
  channel.serve('full', async () => {
    throw new BackupError('the store is full\nfree some space', { cause: new Error('ENOSPC') });
  });
  channel.serve('bug', async () => {
    throw new TypeError('x is not a function');
  });
  send(request(1, 'full') + request(2, 'bug'));
  expect((await messages()).map((m) => m.error)).toEqual([
    { code: 1, message: 'the store is full free some space', data: { cause: 'ENOSPC' } },
    { code: 3, message: 'x is not a function' },
  ]);
});

test('an unknown method is an error, not silence', async () => {
  const { send, messages } = connect();
  send(request(7, 'nonsense'));
  expect((await messages())[0].error.code).toBe(-32601);
});

test.each(['junk\n', '{"jsonrpc":\n', 'null\n'])(
  '%j ends the channel with one reason',
  async (text) => {
    const { send, reasons, messages } = connect();
    send(text);
    send(text);
    await messages();
    expect(reasons).toHaveLength(1);
  },
);

test('the end of the stream closes the channel once', async () => {
  const { channel, end, reasons, messages } = connect();
  end();
  await messages();
  channel.close(new Error('again'));
  expect(reasons).toEqual(['the shim has closed the connection']);
});

test('a shim that does not read costs at most a queue of 1 MiB; dropped lines are counted', () => {
  const { channel } = connect({ stalled: true });
  const line = 'x'.repeat(1000);
  for (let i = 0; i < 5000; i++) channel.notify('log', { level: 'info', message: line });
  expect(channel.takeDropped()).toBeGreaterThan(3000);
  expect(channel.takeDropped()).toBe(0);
});
