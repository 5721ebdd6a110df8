import { describe, expect, test } from 'vitest';
import { type Peer, startPeer } from '../../../fixtures/nbd/peer.ts';
import { lengthPrefixed } from '../../../src/nbd/bytes.ts';
import { connectNbd } from '../../../src/nbd/client.ts';
import { option, optionReply } from '../../../src/nbd/constants.ts';
import type { StreamParser } from '../../../src/nbd/feed.ts';
import { encodeOptionReply, parseOption } from '../../../src/nbd/option-message.ts';
import { encodeSimpleReply } from '../../../src/nbd/reply-message.ts';
import { encodeGreeting } from '../../../src/nbd/server-handshake.ts';
import { connected, scratch } from '../support.ts';

const u16 = (n: number) => Buffer.from([n >> 8, n & 255]);
const u32 = (n: number) => Buffer.from([n >>> 24, (n >> 16) & 255, (n >> 8) & 255, n & 255]);
const info = (...parts: Buffer[]) =>
  encodeOptionReply(option.go, optionReply.info, Buffer.concat(parts));
const goAck = encodeOptionReply(option.go, optionReply.ack);
const srAck = encodeOptionReply(option.structuredReply, optionReply.ack);
const setAck = encodeOptionReply(option.setMetaContext, optionReply.ack);
const context = (id: number, name: string) =>
  encodeOptionReply(
    option.setMetaContext,
    optionReply.metaContext,
    Buffer.concat([u32(id), Buffer.from(name)]),
  );
const size = (bytes: bigint) => {
  const value = Buffer.alloc(8);
  value.writeBigUInt64BE(bytes);
  return value;
};
const exportInfo = info(u16(0), size(1n << 20n), u16(1));

function* clientFlags(): StreamParser<void> {
  yield { take: 4 };
}

/** Answers the options in turn with these bytes, after a good greeting. */
const answering =
  (...answers: Buffer[]) =>
  async (peer: Peer) => {
    peer.send(encodeGreeting());
    await peer.receive(clientFlags());
    for (const answer of answers) {
      await peer.receive(parseOption());
      peer.send(answer);
    }
  };

async function refusal(
  script: (peer: Peer) => Promise<void> | void,
  options: { contexts?: string[] } = {},
) {
  const peer = await startPeer(await scratch(), script);
  const started = Date.now();
  const error = await connectNbd({ ...peer, ...options }).then(
    () => new Error('it connected'),
    (reason: Error & { code?: string }) => reason,
  );
  expect(Date.now() - started).toBeLessThan(5000);
  return error;
}

const contexts = ['base:allocation', 'qemu:dirty-bitmap:b'];
const dropped: Record<string, Parameters<typeof refusal>> = {
  'no NBD magic': [(peer) => peer.send(Buffer.from('HTTP/1.1 400 Bad Request\r\n'))],
  'oldstyle handshake': [
    (peer) => peer.send(Buffer.from('4e42444d4147494300004202818612530000000000000000', 'hex')),
  ],
  'unknown handshake': [
    (peer) => peer.send(Buffer.from('4e42444d414749430000420281861254', 'hex')),
  ],
  'does not speak the fixed newstyle': [
    (peer) => {
      const greeting = encodeGreeting();
      greeting.writeUInt16BE(0, 16);
      peer.send(greeting);
    },
  ],
  'junk in place of an option reply': [answering(Buffer.alloc(20, 0x55))],
  'a reply to an option that was not sent': [answering(goAck)],
  'an acknowledgement with data': [
    answering(encodeOptionReply(option.structuredReply, optionReply.ack, Buffer.from('x'))),
  ],
  'no information about the export': [answering(srAck, goAck)],
  'unexpected option reply 2': [
    answering(srAck, encodeOptionReply(option.go, optionReply.server, lengthPrefixed('x'))),
  ],
  'information without a type': [answering(srAck, info(Buffer.alloc(1)))],
  'information of the wrong length': [answering(srAck, info(u16(0), size(1n)))],
  'an export of 2^53 bytes or more': [answering(srAck, info(u16(0), size(1n << 53n), u16(1)))],
  'no transmission flags': [answering(srAck, info(u16(0), size(1n), u16(0)))],
  'impossible block sizes 3 and 4096': [
    answering(srAck, info(u16(3), u32(3), u32(4096), u32(4096))),
  ],
  'impossible block sizes 0 and 4096': [
    answering(srAck, info(u16(3), u32(0), u32(4096), u32(4096))),
  ],
  'impossible block sizes 131072 and 131072': [
    answering(srAck, info(u16(3), u32(131072), u32(131072), u32(1 << 25))),
  ],
  'impossible maximum payload 100': [answering(srAck, info(u16(3), u32(512), u32(4096), u32(100)))],
  'a metadata context nobody asked for': [
    answering(srAck, Buffer.concat([context(1, 'base:other'), setAck])),
    { contexts },
  ],
  'the same metadata context twice': [
    answering(
      srAck,
      Buffer.concat([context(1, 'base:allocation'), context(1, 'qemu:dirty-bitmap:b'), setAck]),
    ),
    { contexts },
  ],
  'a metadata context without a name': [
    answering(srAck, encodeOptionReply(option.setMetaContext, optionReply.metaContext, u32(1))),
    { contexts },
  ],
};

describe('a handshake that breaks the protocol ends with one clear error', () => {
  for (const [text, args] of Object.entries(dropped)) {
    test(text, async () => {
      const error = await refusal(...args);
      expect(error.message).toContain(text);
      expect(error).toMatchObject({ name: 'NbdError', code: 'EPROTO' });
    });
  }

  test('an option reply of 4 GiB', async () => {
    const reply = encodeOptionReply(option.structuredReply, optionReply.errorPolicy);
    reply.writeUInt32BE(0xffff_ffff, 16);
    expect((await refusal(answering(reply))).message).toContain('junk in place of');
  });
});

describe('a handshake that is refused', () => {
  const refused: [number, string, string][] = [
    [optionReply.errorUnknown, 'ENOENT', "the NBD server refused export 'disk': there is no such"],
    [optionReply.errorPolicy, 'EACCES', 'not allowed'],
    [optionReply.errorTlsRequired, 'EACCES', 'TLS is required'],
    [optionReply.errorShutdown, 'ESHUTDOWN', 'shutting down'],
    [optionReply.errorTooBig, 'EINVAL', 'error 9'],
  ];
  for (const [type, code, text] of refused) {
    test(`with error ${type - 0x80000000}`, async () => {
      const detail = Buffer.from('go\naway');
      const error = await refusal(answering(srAck, encodeOptionReply(option.go, type, detail)));
      expect(error).toMatchObject({ name: 'NbdError', code });
      expect(error.message).toContain(text);
      expect(error.message).toMatch(/\(go away\)$/);
    });
  }

  test('after its information was given', async () => {
    const late = encodeOptionReply(option.go, optionReply.errorUnknown);
    const error = await refusal(answering(srAck, Buffer.concat([exportInfo, late])));
    expect(error).toMatchObject({ code: 'ENOENT' });
  });
});

test('a server that knows none of the newer options, and sends its padding', async () => {
  const unsupported = (one: number) => encodeOptionReply(one, optionReply.errorUnsupported);
  const peer = await startPeer(await scratch(), async (one) => {
    const greeting = encodeGreeting();
    greeting.writeUInt16BE(1, 16);
    one.send(greeting);
    await one.receive(clientFlags());
    for (const expected of [option.structuredReply, option.go]) {
      expect((await one.receive(parseOption()))?.option).toBe(expected);
      one.send(unsupported(expected));
    }
    const chosen = await one.receive(parseOption());
    expect(chosen).toMatchObject({ option: option.exportName, data: Buffer.from('disk') });
    one.send(size(1n << 20n), u16(3), Buffer.alloc(124));
    const { cookie, flags } = await one.request();
    expect(flags).toBe(0);
    one.send(encodeSimpleReply(cookie, 0), Buffer.alloc(512, 7));
  });
  const connection = await connected({ ...peer, contexts: ['base:allocation'] });
  expect(connection).toMatchObject({ size: 1 << 20, info: { readOnly: true, canDf: false } });
  expect(connection.contexts.size).toBe(0);
  expect(await connection.read(0, 512)).toEqual(Buffer.alloc(512, 7));
});
