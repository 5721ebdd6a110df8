import type { Socket } from 'node:net';
import { messageOf } from '../protocol/errors.ts';
import * as nbd from './constants.ts';
import { errnoOf, type NbdErrorCode } from './errors.ts';
import { Feed, type StreamParser } from './feed.ts';
import {
  encodeDataChunk,
  encodeErrorChunk,
  encodeSimpleReply,
  encodeStatusChunk,
} from './reply-message.ts';
import { parseRequest, type Request } from './request-message.ts';
import type { NbdImage } from './server.ts';
import { allocationId, type Choice, encodeGreeting, serverHandshake } from './server-handshake.ts';
import { statusOf } from './status.ts';

/** What one client may have under way. */
const maxRequests = 16;
const maxReplyBytes = 64 * 1024 * 1024;
/** Option replies that a client has not read. */
const maxBacklog = 1024 * 1024;
/** A client that does not finish its handshake in time is dropped, as QEMU does [E1]. */
const handshakeMs = 10_000;

/** One client of the server. */
export class ServerSession {
  readonly #socket: Socket;
  readonly #image: NbdImage;
  readonly #aborted = new AbortController();
  readonly #timer: NodeJS.Timeout;
  /** Parsed but not begun; no more than one piece of the stream holds. */
  readonly #queue: Request[] = [];
  #choice: Choice = { structured: false, allocation: false };
  #underWay = 0;
  #replyBytes = 0;
  #leaving = false;

  constructor(socket: Socket, image: NbdImage, exportName: string) {
    this.#socket = socket;
    this.#image = image;
    this.#timer = setTimeout(() => socket.destroy(), handshakeMs);
    const feed = new Feed(this.#serve(exportName));
    socket.on('data', (bytes) => {
      feed.push(bytes as Buffer);
      this.#pump();
    });
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      clearTimeout(this.#timer);
      this.#aborted.abort(new Error('the NBD client has gone'));
    });
    socket.write(encodeGreeting());
  }

  *#serve(exportName: string): StreamParser<void> {
    const choice = yield* serverHandshake({
      exportName,
      size: this.#image.size,
      allocation: this.#image.extents !== undefined,
      send: (bytes) => {
        this.#socket.write(bytes);
        // It asks on and on and never reads the answers.
        if (this.#socket.writableLength > maxBacklog) this.#socket.destroy();
      },
    });
    clearTimeout(this.#timer);
    if (choice === undefined) {
      // What was answered, such as the reply to an abort, still goes out.
      this.#socket.destroySoon();
      return;
    }
    this.#choice = choice;
    for (;;) {
      const request = yield* parseRequest();
      if (request === undefined) return void this.#socket.destroy();
      if (request.type === nbd.command.disconnect) {
        this.#leaving = true;
        return;
      }
      if (request.type === nbd.command.write) {
        if (request.length > nbd.maxPayload) return void this.#socket.destroy();
        yield { skip: request.length };
      }
      this.#queue.push(request);
    }
  }

  /** Begins what the limits allow; while they are reached nothing more is read from the client. */
  #pump(): void {
    if (this.#socket.destroyed) return;
    for (let next = this.#queue[0]; next !== undefined; next = this.#queue[0]) {
      const size = next.type === nbd.command.read ? next.length : 0;
      const full = this.#replyBytes + size > maxReplyBytes && this.#underWay > 0;
      if (this.#underWay >= maxRequests || full) break;
      this.#queue.shift();
      this.#underWay += 1;
      this.#replyBytes += size;
      const finish = () => {
        this.#underWay -= 1;
        this.#replyBytes -= size;
        this.#pump();
      };
      this.#answer(next).then(
        (reply) => this.#send(reply, finish),
        () => this.#socket.destroy(),
      );
    }
    if (this.#queue.length > 0) this.#socket.pause();
    else if (this.#leaving && this.#underWay === 0) this.#socket.destroySoon();
    else this.#socket.resume();
  }

  #send(pieces: readonly Uint8Array[], finish: () => void): void {
    if (this.#socket.destroyed) return;
    this.#socket.cork();
    pieces.forEach((piece, i) => {
      this.#socket.write(piece, i === pieces.length - 1 ? finish : undefined);
    });
    this.#socket.uncork();
  }

  /** Never rejects. */
  async #answer(request: Request): Promise<Uint8Array[]> {
    const { cookie, offset, length, type } = request;
    const refused = this.#refusal(request);
    if (refused !== undefined) return [this.#error(cookie, ...refused)];
    try {
      if (type === nbd.command.blockStatus) return [await this.#status(request)];
      const data = await this.#image.read(offset, length, this.#aborted.signal);
      if (data.length !== length) throw new Error(`${data.length} bytes instead of ${length}`);
      const head = this.#choice.structured
        ? encodeDataChunk(cookie, offset, length, { final: true })
        : encodeSimpleReply(cookie, 0);
      return [head, data];
    } catch (error) {
      return [this.#error(cookie, 'EIO', messageOf(error))];
    }
  }

  async #status({ cookie, offset, length, flags }: Request): Promise<Uint8Array> {
    const most = (flags & nbd.commandFlag.reqOne) !== 0 ? 1 : nbd.maxStatusExtents;
    const extents = await statusOf(this.#image, offset, length, most);
    return encodeStatusChunk(cookie, allocationId, extents, { final: true });
  }

  #error(cookie: bigint, code: NbdErrorCode, text: string): Uint8Array {
    return this.#choice.structured
      ? encodeErrorChunk(cookie, errnoOf(code), text, { final: true })
      : encodeSimpleReply(cookie, errnoOf(code));
  }

  #refusal({ type, flags, offset, length }: Request): [NbdErrorCode, string] | undefined {
    const { read, write, trim, writeZeroes, blockStatus } = nbd.command;
    if (type === write || type === trim || type === writeZeroes) {
      return ['EPERM', 'the export is read-only'];
    }
    if (type !== read && !(type === blockStatus && this.#choice.allocation)) {
      return ['EINVAL', `command ${type} is not served`];
    }
    const allowed = type === read ? nbd.commandFlag.df : nbd.commandFlag.reqOne;
    if ((flags & ~allowed) !== 0) return ['EINVAL', `flags ${flags} are not served`];
    if (length === 0 || offset + length > this.#image.size) {
      return ['EINVAL', `the export ends at ${this.#image.size}`];
    }
    if (type === read && length > nbd.maxPayload) {
      return ['EOVERFLOW', `more than ${nbd.maxPayload} bytes in one read`];
    }
    return undefined;
  }
}
