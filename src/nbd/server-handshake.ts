import { lengthPrefixed, writeU64 } from './bytes.ts';
import * as nbd from './constants.ts';
import type { StreamParser } from './feed.ts';
import {
  decodeContextQuery,
  decodeInfoQuery,
  encodeOptionReply,
  type OptionMessage,
  parseOption,
} from './option-message.ts';

export interface ServerHandshake {
  readonly exportName: string;
  readonly size: number;
  /** Whether base:allocation is offered. */
  readonly allocation: boolean;
  readonly send: (bytes: Buffer) => void;
}

/** What a client chose. */
export interface Choice {
  readonly structured: boolean;
  /** Whether it may ask for block status. */
  readonly allocation: boolean;
}

/** The id of base:allocation, the only metadata context. */
export const allocationId = 1;
const allocationName = 'base:allocation';

/** What a server says first. */
export function encodeGreeting(): Buffer {
  const bytes = Buffer.alloc(18);
  bytes.writeBigUInt64BE(nbd.magic.greeting, 0);
  bytes.writeBigUInt64BE(nbd.magic.option, 8);
  bytes.writeUInt16BE(nbd.handshakeFlag.fixedNewstyle | nbd.handshakeFlag.noZeroes, 16);
  return bytes;
}

/** The server's side of the handshake, after the greeting; undefined if the client has to go. */
export function* serverHandshake(handshake: ServerHandshake): StreamParser<Choice | undefined> {
  const clientFlags = (yield { take: 4 }).readUInt32BE();
  const known = nbd.handshakeFlag.fixedNewstyle | nbd.handshakeFlag.noZeroes;
  if ((clientFlags & ~known) !== 0) return undefined;
  const haggling = new Haggling(handshake, (clientFlags & nbd.handshakeFlag.noZeroes) !== 0);
  for (;;) {
    const message = yield* parseOption();
    const outcome = message === undefined ? 'leave' : haggling.answer(message);
    if (outcome === 'leave') return undefined;
    if (outcome === 'enter') return haggling.choice;
  }
}

/** `enter` the transmission phase, `leave` the client alone, or wait for another option. */
type Outcome = 'enter' | 'leave' | undefined;

class Haggling {
  readonly #handshake: ServerHandshake;
  readonly #noZeroes: boolean;
  #structured = false;
  #allocation = false;

  constructor(handshake: ServerHandshake, noZeroes: boolean) {
    this.#handshake = handshake;
    this.#noZeroes = noZeroes;
  }

  get choice(): Choice {
    return { structured: this.#structured, allocation: this.#allocation };
  }

  answer({ option, data }: OptionMessage): Outcome {
    const reply: Reply = (type, payload) => {
      this.#handshake.send(encodeOptionReply(option, type, payload));
      return undefined;
    };
    switch (option) {
      case nbd.option.exportName:
        return this.#byName(data);
      case nbd.option.abort:
        reply(nbd.optionReply.ack);
        return 'leave';
      case nbd.option.list:
        if (data.length > 0) return reply(nbd.optionReply.errorInvalid);
        reply(nbd.optionReply.server, lengthPrefixed(this.#handshake.exportName));
        return reply(nbd.optionReply.ack);
      case nbd.option.structuredReply:
        if (data.length > 0) return reply(nbd.optionReply.errorInvalid);
        this.#structured = true;
        return reply(nbd.optionReply.ack);
      case nbd.option.info:
      case nbd.option.go:
        return this.#inform(option, data, reply);
      case nbd.option.listMetaContext:
      case nbd.option.setMetaContext:
        return this.#contexts(option, data, reply);
      default:
        return reply(nbd.optionReply.errorUnsupported);
    }
  }

  /** An empty name means the default export, which is the only one. */
  #isOurs(name: string): boolean {
    return name === '' || name === this.#handshake.exportName;
  }

  #transmissionFlags(): number {
    const { hasFlags, readOnly, canMultiConn, sendDf } = nbd.transmissionFlag;
    return hasFlags | readOnly | canMultiConn | (this.#structured ? sendDf : 0);
  }

  #byName(data: Buffer): Outcome {
    if (!this.#isOurs(data.toString())) return 'leave';
    const bytes = Buffer.alloc(this.#noZeroes ? 10 : 134);
    writeU64(bytes, this.#handshake.size, 0);
    bytes.writeUInt16BE(this.#transmissionFlags(), 8);
    this.#handshake.send(bytes);
    return 'enter';
  }

  #inform(option: number, data: Buffer, reply: Reply): Outcome {
    const query = decodeInfoQuery(data);
    if (query === undefined) return reply(nbd.optionReply.errorInvalid);
    if (!this.#isOurs(query.exportName)) return reply(nbd.optionReply.errorUnknown);
    const about = Buffer.alloc(12);
    about.writeUInt16BE(nbd.info.export, 0);
    writeU64(about, this.#handshake.size, 2);
    about.writeUInt16BE(this.#transmissionFlags(), 10);
    reply(nbd.optionReply.info, about);
    if (query.wanted.includes(nbd.info.blockSize)) {
      const sizes = Buffer.alloc(14);
      sizes.writeUInt16BE(nbd.info.blockSize, 0);
      sizes.writeUInt32BE(1, 2);
      sizes.writeUInt32BE(4096, 6);
      sizes.writeUInt32BE(nbd.maxPayload, 10);
      reply(nbd.optionReply.info, sizes);
    }
    reply(nbd.optionReply.ack);
    return option === nbd.option.go ? 'enter' : undefined;
  }

  #contexts(option: number, data: Buffer, reply: Reply): undefined {
    const setting = option === nbd.option.setMetaContext;
    if (setting) this.#allocation = false;
    const query = decodeContextQuery(data);
    if (query === undefined || !this.#structured) return reply(nbd.optionReply.errorInvalid);
    if (!this.#isOurs(query.exportName)) return reply(nbd.optionReply.errorUnknown);
    const asked = setting
      ? query.queries.includes(allocationName)
      : query.queries.length === 0 ||
        query.queries.some((text) => text === allocationName || text === 'base:');
    if (asked && this.#handshake.allocation) {
      if (setting) this.#allocation = true;
      const id = Buffer.from([0, 0, 0, setting ? allocationId : 0]);
      reply(nbd.optionReply.metaContext, Buffer.concat([id, Buffer.from(allocationName)]));
    }
    return reply(nbd.optionReply.ack);
  }
}

type Reply = (type: number, payload?: Uint8Array) => undefined;
