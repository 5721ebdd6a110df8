import { lengthPrefixed, readU64 } from './bytes.ts';
import * as nbd from './constants.ts';
import { NbdError, type NbdErrorCode, protocolError } from './errors.ts';
import type { StreamParser } from './feed.ts';
import { encodeOption, type OptionReply, parseOptionReply } from './option-message.ts';

/** What the handshake settled. */
export interface Export {
  readonly size: number;
  /** Transmission flags. */
  readonly flags: number;
  readonly structured: boolean;
  readonly blockSize: { minimum: number; preferred: number; maximum: number };
  /** Ids of the metadata contexts that were granted, by name. */
  readonly contexts: ReadonlyMap<string, number>;
}

export interface ClientHandshake {
  readonly exportName: string;
  readonly contexts: readonly string[];
  readonly send: (bytes: Buffer) => void;
}

const defaultBlockSize = { minimum: 1, preferred: 4096, maximum: nbd.maxPayload };

/** The client's side of the handshake. Throws NbdError if the server refuses or breaks the protocol. */
export function* clientHandshake(handshake: ClientHandshake): StreamParser<Export> {
  const { exportName, contexts, send } = handshake;
  const noZeroes = yield* greeting(send);
  const structured = yield* structuredReplies(send);
  const granted =
    structured && contexts.length > 0
      ? yield* metaContexts(exportName, contexts, send)
      : new Map<string, number>();
  const chosen = (yield* go(exportName, send)) ?? (yield* byName(exportName, noZeroes, send));
  return { ...chosen, structured, contexts: granted };
}

function* greeting(send: ClientHandshake['send']): StreamParser<boolean> {
  const start = yield { take: 16 };
  const kind = start.readBigUInt64BE(8);
  if (start.readBigUInt64BE(0) !== nbd.magic.greeting) throw protocolError('no NBD magic');
  if (kind === nbd.magic.oldstyle) throw protocolError('it speaks the oldstyle handshake only');
  if (kind !== nbd.magic.option) throw protocolError('unknown handshake');
  const flags = (yield { take: 2 }).readUInt16BE();
  if ((flags & nbd.handshakeFlag.fixedNewstyle) === 0) {
    throw protocolError('it does not speak the fixed newstyle handshake');
  }
  const reply = Buffer.alloc(4);
  reply.writeUInt32BE(flags & (nbd.handshakeFlag.fixedNewstyle | nbd.handshakeFlag.noZeroes));
  send(reply);
  return (flags & nbd.handshakeFlag.noZeroes) !== 0;
}

function* structuredReplies(send: ClientHandshake['send']): StreamParser<boolean> {
  send(encodeOption(nbd.option.structuredReply));
  const reply = yield* replyTo(nbd.option.structuredReply);
  if (reply.type === nbd.optionReply.errorShutdown) throw refusal(reply, 'structured replies');
  return reply.type === nbd.optionReply.ack;
}

function* metaContexts(
  exportName: string,
  contexts: readonly string[],
  send: ClientHandshake['send'],
): StreamParser<Map<string, number>> {
  const count = Buffer.alloc(4);
  count.writeUInt32BE(contexts.length);
  const queries = contexts.map(lengthPrefixed);
  send(
    encodeOption(
      nbd.option.setMetaContext,
      Buffer.concat([lengthPrefixed(exportName), count, ...queries]),
    ),
  );
  const granted = new Map<string, number>();
  for (;;) {
    const reply = yield* replyTo(nbd.option.setMetaContext);
    if (reply.type === nbd.optionReply.ack) return granted;
    // A server without block status: the caller sees that nothing was granted.
    if (reply.type === nbd.optionReply.errorUnsupported) return new Map();
    if (reply.type !== nbd.optionReply.metaContext) throw refusal(reply, `export '${exportName}'`);
    if (reply.data.length < 5) throw protocolError('a metadata context without a name');
    const name = reply.data.toString('utf8', 4);
    const id = reply.data.readUInt32BE(0);
    if (!contexts.includes(name)) throw protocolError('a metadata context nobody asked for');
    if (granted.has(name) || [...granted.values()].includes(id)) {
      throw protocolError('the same metadata context twice');
    }
    granted.set(name, id);
  }
}

type Chosen = Pick<Export, 'size' | 'flags' | 'blockSize'>;

/** Undefined if the server does not know the option, which older ones do not. */
function* go(exportName: string, send: ClientHandshake['send']): StreamParser<Chosen | undefined> {
  const wanted = Buffer.from([0, 1, 0, nbd.info.blockSize]);
  send(encodeOption(nbd.option.go, Buffer.concat([lengthPrefixed(exportName), wanted])));
  let size: number | undefined;
  let flags = 0;
  let blockSize = defaultBlockSize;
  for (;;) {
    const { type, data, option } = yield* replyTo(nbd.option.go);
    if (type === nbd.optionReply.ack) {
      if (size === undefined) throw protocolError('no information about the export');
      return { size, flags, blockSize };
    }
    if (type === nbd.optionReply.errorUnsupported) return undefined;
    if (type !== nbd.optionReply.info) {
      throw refusal({ type, data, option }, `export '${exportName}'`);
    }
    if (data.length < 2) throw protocolError('information without a type');
    const what = data.readUInt16BE(0);
    if (what === nbd.info.export) {
      if (data.length !== 12) throw protocolError('information of the wrong length');
      size = checkedSize(readU64(data, 2));
      flags = checkedFlags(data.readUInt16BE(10));
    } else if (what === nbd.info.blockSize) {
      if (data.length !== 14) throw protocolError('information of the wrong length');
      blockSize = checkedBlockSize(
        data.readUInt32BE(2),
        data.readUInt32BE(6),
        data.readUInt32BE(10),
      );
    }
  }
}

function* byName(
  exportName: string,
  noZeroes: boolean,
  send: ClientHandshake['send'],
): StreamParser<Chosen> {
  send(encodeOption(nbd.option.exportName, Buffer.from(exportName)));
  const data = yield { take: 10 };
  const size = checkedSize(readU64(data, 0));
  const flags = checkedFlags(data.readUInt16BE(8));
  if (!noZeroes) yield { skip: 124 };
  return { size, flags, blockSize: defaultBlockSize };
}

function* replyTo(option: number): StreamParser<OptionReply> {
  const reply = yield* parseOptionReply();
  if (reply === undefined) throw protocolError('junk in place of an option reply');
  if (reply.option !== option) throw protocolError('a reply to an option that was not sent');
  if (reply.type === nbd.optionReply.ack && reply.data.length > 0) {
    throw protocolError('an acknowledgement with data');
  }
  return reply;
}

const refusals: Record<number, [NbdErrorCode, string]> = {
  [nbd.optionReply.errorPolicy]: ['EACCES', 'not allowed'],
  [nbd.optionReply.errorTlsRequired]: ['EACCES', 'TLS is required'],
  [nbd.optionReply.errorUnknown]: ['ENOENT', 'there is no such export'],
  [nbd.optionReply.errorShutdown]: ['ESHUTDOWN', 'the server is shutting down'],
};

function refusal(reply: OptionReply, what: string): NbdError {
  if (reply.type < 0x80000000) return protocolError(`unexpected option reply ${reply.type}`);
  const [code, text] = refusals[reply.type] ?? ['EINVAL', `error ${reply.type - 0x80000000}`];
  const detail = reply.data.toString('utf8', 0, nbd.maxString);
  const message = `the NBD server refused ${what}: ${text}`;
  return new NbdError(code, detail === '' ? message : `${message} (${detail})`);
}

function checkedSize(size: number): number {
  if (!Number.isSafeInteger(size)) throw protocolError('an export of 2^53 bytes or more');
  return size;
}

function checkedFlags(flags: number): number {
  if ((flags & nbd.transmissionFlag.hasFlags) === 0) throw protocolError('no transmission flags');
  return flags;
}

function checkedBlockSize(minimum: number, preferred: number, maximum: number) {
  const powerOf2 = (n: number) => n > 0 && Number.isInteger(Math.log2(n));
  if (!powerOf2(minimum) || minimum > 65536 || !powerOf2(preferred) || preferred < minimum) {
    throw protocolError(`impossible block sizes ${minimum} and ${preferred}`);
  }
  if (maximum < minimum) throw protocolError(`impossible maximum payload ${maximum}`);
  return { minimum, preferred, maximum: Math.min(maximum, nbd.maxPayload) };
}
