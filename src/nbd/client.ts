import { clientHandshake } from './client-handshake.ts';
import { ClientSocket } from './client-socket.ts';
import { Connection } from './connection.ts';
import { command } from './constants.ts';
import { NbdError } from './errors.ts';
import type { StreamParser } from './feed.ts';
import { parseReplies, type StatusExtent } from './reply-message.ts';
import { encodeRequest } from './request-message.ts';
import { Transmission } from './transmission.ts';

export { NbdError } from './errors.ts';

export interface NbdConnectOptions {
  readonly socketPath: string;
  readonly exportName: string;
  /** Metadata contexts to ask for; not base:allocation together with another [E4]. */
  readonly contexts?: readonly string[];
  /** Cancels the connecting, not the connection. */
  readonly signal?: AbortSignal;
  /** 10,000 unless told. */
  readonly handshakeTimeoutMs?: number;
}

export interface NbdInfo {
  readonly readOnly: boolean;
  readonly canTrim: boolean;
  readonly canFlush: boolean;
  readonly canWriteZeroes: boolean;
  readonly canMultiConn: boolean;
  readonly canDf: boolean;
  /** Requests are multiples of `minimum`; reads and writes are no larger than `maximum`. */
  readonly blockSize: { minimum: number; preferred: number; maximum: number };
}

/**
 * One connection to an export. Any number of requests may be made at once; 16 are under way at a time [E1].
 * A request rejects with RangeError if it may not be sent, with NbdError if it failed, and with the signal's
 * reason at once when aborted. When the connection ends, all requests reject with the same NbdError.
 */
export interface NbdConnection {
  /** Bytes. */
  readonly size: number;
  readonly info: NbdInfo;
  /** The metadata contexts that the server granted. */
  readonly contexts: ReadonlySet<string>;
  /** In one piece (`df`) unless told otherwise, where the server can [E5]. The buffer is the caller's. */
  read(offset: number, length: number, options?: NbdReadOptions): Promise<Buffer>;
  /** `data` must not change until the promise settles, and after an abort until the connection is closed. */
  write(offset: number, data: Uint8Array, options?: NbdWriteOptions): Promise<void>;
  writeZeroes(offset: number, length: number, options?: NbdWriteOptions): Promise<void>;
  trim(offset: number, length: number, options?: { readonly signal?: AbortSignal }): Promise<void>;
  flush(options?: { readonly signal?: AbortSignal }): Promise<void>;
  /** At least one extent, from `offset` on, never beyond the range; it may cover less of it. */
  blockStatus(
    context: string,
    offset: number,
    length: number,
    options?: { readonly signal?: AbortSignal },
  ): Promise<StatusExtent[]>;
  /** Rejects what is under way and disconnects; idempotent, done within 2 s. */
  close(): Promise<void>;
}

export interface NbdReadOptions {
  readonly df?: boolean;
  readonly signal?: AbortSignal;
  /** Takes the data, if it is as long as the read; after an abort it may still be written to. */
  readonly into?: Buffer;
}

export interface NbdWriteOptions {
  /** Resolve only when the data is on stable storage. */
  readonly fua?: boolean;
  readonly signal?: AbortSignal;
}

/** Connects and shakes hands. */
export async function connectNbd(options: NbdConnectOptions): Promise<NbdConnection> {
  const { socketPath, signal, handshakeTimeoutMs = 10_000 } = options;
  signal?.throwIfAborted();
  const session = openSession(options);
  const onAbort = () => session.abandon(signal?.reason);
  signal?.addEventListener('abort', onAbort);
  const timer = setTimeout(() => {
    const message = `the NBD server at ${socketPath} did not answer within ${handshakeTimeoutMs} ms`;
    session.abandon(new NbdError('ETIMEDOUT', message));
  }, handshakeTimeoutMs);
  try {
    return await session.connected;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  }
}

function openSession({ socketPath, exportName, contexts = [] }: NbdConnectOptions) {
  let settle: { resolve: (made: NbdConnection) => void; reject: (reason: unknown) => void };
  const connected = new Promise<NbdConnection>((resolve, reject) => {
    settle = { resolve, reject };
  });
  const transmission = new Transmission({
    send: (pieces) => socket.send(pieces),
    onShutdown: (reason) => end(reason),
  });
  const end = (reason: NbdError) => {
    transmission.end(reason);
    return socket.close(goodbye);
  };
  function* parser(): StreamParser {
    const send = (bytes: Buffer) => socket.send([bytes]);
    const chosen = yield* clientHandshake({ exportName, contexts, send });
    const closed = new NbdError('ESHUTDOWN', 'the NBD connection was closed');
    settle.resolve(new Connection(chosen, transmission, () => end(closed)));
    return yield* parseReplies(transmission, chosen.structured);
  }
  const socket = new ClientSocket(socketPath, parser(), (reason) => {
    settle.reject(reason);
    transmission.end(reason);
  });
  return {
    connected,
    /** Gives up before the handshake is done. */
    abandon(reason: unknown) {
      settle.reject(reason);
      socket.fail(new NbdError('ECONNRESET', 'the NBD handshake was given up'));
    },
  };
}

const goodbye = encodeRequest({
  flags: 0,
  type: command.disconnect,
  cookie: 0n,
  offset: 0,
  length: 0,
});
