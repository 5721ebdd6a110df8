import type { Duplex } from 'node:stream';
import {
  createJSONRPCErrorResponse,
  JSONRPCClient,
  type JSONRPCRequest,
  JSONRPCServer,
  JSONRPCServerAndClient,
} from 'json-rpc-2.0';
import { errorCode, isBackupError, messageOf } from '../protocol/errors.ts';
import { LineSplitter } from './lines.ts';

const droppableBytes = 1024 * 1024;

/** The cause of an error, for the shim's debug log. */
function causeOf(error: unknown): string | undefined {
  return error instanceof Error && error.cause !== undefined ? messageOf(error.cause) : undefined;
}

/**
 * JSON-RPC 2.0 in both directions over a stream, one message per line. It never touches a process:
 * whoever makes it says what its end means. Closing fails every request under way with one reason.
 */
export class Channel {
  readonly #stream: Duplex;
  readonly #peer: JSONRPCServerAndClient;
  readonly #lines = new LineSplitter();
  readonly #onClose: (reason: Error) => void;
  readonly #dropsGarbage: boolean;
  #dropped = 0;
  #requests = 0;
  #closed = false;

  /** With `dropsGarbage` a line that is no JSON is passed over: its writer was killed in the middle of it. */
  constructor(
    stream: Duplex,
    onClose: (reason: Error) => void,
    { dropsGarbage = false }: { dropsGarbage?: boolean } = {},
  ) {
    this.#stream = stream;
    this.#onClose = onClose;
    this.#dropsGarbage = dropsGarbage;
    const server = new JSONRPCServer({ errorListener: () => undefined });
    server.mapErrorToJSONRPCErrorResponse = (id, error: unknown) => {
      const cause = causeOf(error);
      const code = isBackupError(error) ? error.code : errorCode.provider;
      return createJSONRPCErrorResponse(id, code, messageOf(error), cause && { cause });
    };
    this.#peer = new JSONRPCServerAndClient(
      server,
      // Texts: Perl may turn a number into one.
      new JSONRPCClient(
        (message) => this.#send(message),
        () => `host-${++this.#requests}`,
      ),
    );
    stream.on('data', (chunk: Buffer) => this.#receive(chunk));
    stream.on('end', () => this.close(new Error('the shim has closed the connection')));
    stream.on('error', (error) => this.close(error));
  }

  /** Answers requests of this method with what `handler` resolves to. */
  serve(method: string, handler: (params: unknown) => Promise<unknown>): void {
    this.#peer.addMethod(method, handler);
  }

  /** Asks the shim; rejects with its error, or when the channel closes. */
  async request(method: string, params: object): Promise<unknown> {
    if (this.#closed) throw new Error('the connection is closed');
    return this.#peer.request(method, params);
  }

  /** Sends a notification, unless so much is queued that it would have to wait: then it is counted. */
  notify(method: string, params: object): void {
    if (this.#closed || this.#stream.writableLength > droppableBytes) {
      this.#dropped++;
      return;
    }
    this.#peer.notify(method, params);
  }

  /** How many notifications have been dropped since the last call. */
  takeDropped(): number {
    const dropped = this.#dropped;
    this.#dropped = 0;
    return dropped;
  }

  close(reason: Error): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#peer.rejectAllPendingRequests(reason.message);
    this.#stream.end();
    this.#onClose(reason);
  }

  #send(message: unknown): void {
    if (!this.#closed) this.#stream.write(`${JSON.stringify(message)}\n`);
  }

  #receive(chunk: Buffer): void {
    try {
      for (const line of this.#lines.push(chunk)) this.#dispatch(line);
    } catch (error) {
      this.close(new Error(`the shim sent something else than JSON-RPC: ${messageOf(error)}`));
    }
  }

  #dispatch(line: string): void {
    const message = this.#parse(line);
    if (message === undefined) return;
    this.#peer.receiveAndSend(message).catch((error: Error) => this.close(error));
  }

  #parse(line: string): JSONRPCRequest | undefined {
    try {
      return JSON.parse(line) as JSONRPCRequest;
    } catch (error) {
      if (this.#dropsGarbage) return undefined;
      throw error;
    }
  }
}
