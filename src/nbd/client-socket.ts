import { connect, type Socket } from 'node:net';
import { maxSocketPath } from './constants.ts';
import { connectionError, NbdError } from './errors.ts';
import { Feed, type StreamParser } from './feed.ts';

/** Data of at least this size is received where it belongs, without a copy. */
const directSize = 64 * 1024;
/** How long a server may take to hang up after a goodbye. */
const farewellMs = 2000;

/** A Unix socket whose bytes go through a parser. */
export class ClientSocket {
  readonly #feed: Feed;
  readonly #onEnd: (reason: NbdError) => void;
  readonly #socket: Socket;
  /** Resolves when both directions are shut. */
  readonly #closed: Promise<void>;
  #corked = false;
  #ended = false;

  /** Connects; `onEnd` is called once, whatever ends the connection, and the parser sees nothing more. */
  constructor(path: string, parser: StreamParser, onEnd: (reason: NbdError) => void) {
    if (Buffer.byteLength(path) > maxSocketPath) {
      throw new RangeError(`the socket path is longer than ${maxSocketPath} bytes: ${path}`);
    }
    this.#feed = new Feed(parser);
    this.#onEnd = onEnd;
    const staging = Buffer.allocUnsafeSlow(directSize);
    this.#socket = connect({
      path,
      onread: {
        buffer: () => {
          const room = this.#feed.room;
          return room !== undefined && room.length >= directSize ? room : staging;
        },
        callback: (count, buffer) => {
          this.#receive(() => {
            if (buffer === staging) this.#feed.push(staging.subarray(0, count));
            else this.#feed.filled(count);
          });
          return true;
        },
      },
    });
    this.#closed = new Promise((resolve) => this.#socket.once('close', () => resolve()));
    this.#socket.on('error', (error) => this.fail(connectionError(`NBD socket ${path}`, error)));
    this.#socket.on('close', () => {
      this.fail(new NbdError('ECONNRESET', 'the NBD server closed the connection'));
    });
  }

  /** All that is sent in one turn of the event loop leaves in one system call. */
  send(pieces: readonly Uint8Array[]): void {
    if (this.#socket.destroyed || this.#socket.writableEnded) return;
    if (!this.#corked) {
      this.#corked = true;
      this.#socket.cork();
      process.nextTick(() => {
        this.#corked = false;
        this.#socket.uncork();
      });
    }
    for (const piece of pieces) this.#socket.write(piece);
  }

  /** Hangs up at once. */
  fail(reason: NbdError): void {
    if (!this.#ended) {
      this.#ended = true;
      this.#onEnd(reason);
    }
    this.#socket.destroy();
  }

  /** Says goodbye, then waits until the server has hung up, for 2 s at most. */
  async close(goodbye: Uint8Array): Promise<void> {
    if (!this.#socket.destroyed && !this.#socket.writableEnded) this.#socket.end(goodbye);
    const timer = setTimeout(() => this.#socket.destroy(), farewellMs);
    await this.#closed;
    clearTimeout(timer);
  }

  #receive(parse: () => void): void {
    if (this.#ended) return;
    try {
      parse();
    } catch (error) {
      const broken = error instanceof NbdError ? error : connectionError('NBD client', error);
      this.fail(broken);
    }
  }
}
