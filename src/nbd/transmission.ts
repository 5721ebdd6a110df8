import type { Assembly } from './assembly.ts';
import { command, maxInFlight } from './constants.ts';
import { codeOfErrno, NbdError, protocolError } from './errors.ts';
import type { ReplySink, StatusExtent } from './reply-message.ts';
import { encodeRequest } from './request-message.ts';

/** What is asked of the server. */
export interface Question {
  /** For messages: `read of 512 bytes at 0`. */
  readonly title: string;
  readonly type: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
  readonly payload?: Uint8Array;
}

interface Pending {
  readonly question: Question;
  /** Undefined once nobody waits any more: the rest of the reply is dropped. */
  assembly: Assembly<unknown> | undefined;
  failure: NbdError | undefined;
  /** Settles the caller's promise; does nothing the second time. */
  readonly reject: (error: unknown) => void;
  readonly resolve: (result: never) => void;
}

/**
 * The client's side of the transmission phase: sends requests, at most 16 at a time [E1], and hands the
 * replies to those who wait. It knows no socket.
 */
export class Transmission implements ReplySink {
  readonly #send: (pieces: readonly Uint8Array[]) => void;
  readonly #onShutdown: (reason: NbdError) => void;
  readonly #inFlight = new Map<number, Pending>();
  readonly #queue = new Set<Pending>();
  #lastCookie = 0;
  #ended: NbdError | undefined;

  constructor(io: {
    /** Sends the pieces in one write. */
    send: (pieces: readonly Uint8Array[]) => void;
    /** The server said that it shuts down: the client has to disconnect. */
    onShutdown: (reason: NbdError) => void;
  }) {
    this.#send = io.send;
    this.#onShutdown = io.onShutdown;
  }

  /** Rejects with the signal's reason at once when aborted; the late reply is dropped. */
  request<T>(question: Question, assembly: Assembly<T>, signal?: AbortSignal): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      if (this.#ended !== undefined) return reject(this.#ended);
      const onAbort = () => {
        pending.reject(signal?.reason);
        this.#queue.delete(pending);
      };
      const settle = () => {
        signal?.removeEventListener('abort', onAbort);
        pending.assembly = undefined;
      };
      const pending: Pending = {
        question,
        assembly,
        failure: undefined,
        reject: (error) => {
          settle();
          reject(error);
        },
        resolve: (result) => {
          settle();
          resolve(result);
        },
      };
      signal?.addEventListener('abort', onAbort);
      this.#queue.add(pending);
      this.#pump();
    });
  }

  /** Rejects everything that waits, now and later. Replies that still come are dropped. */
  end(reason: NbdError): void {
    if (this.#ended !== undefined) return;
    this.#ended = reason;
    for (const pending of [...this.#inFlight.values(), ...this.#queue]) pending.reject(reason);
    this.#queue.clear();
  }

  #pump(): void {
    for (const pending of this.#queue) {
      if (this.#inFlight.size >= maxInFlight || this.#ended !== undefined) return;
      this.#queue.delete(pending);
      this.#lastCookie += 1;
      this.#inFlight.set(this.#lastCookie, pending);
      const { payload, ...header } = pending.question;
      const request = encodeRequest({ ...header, cookie: BigInt(this.#lastCookie) });
      this.#send(payload === undefined ? [request] : [request, payload]);
    }
  }

  #pending(cookie: number): Pending {
    const pending = this.#inFlight.get(cookie);
    if (pending !== undefined) return pending;
    // QEMU does so when one of two metadata contexts fails [E4].
    if (cookie > 0 && cookie <= this.#lastCookie) {
      throw protocolError(`another reply to request ${cookie} after its final one`);
    }
    throw protocolError('a reply to a request that was never sent');
  }

  begin(cookie: number): void {
    this.#pending(cookie);
  }

  simpleLength(cookie: number): number {
    const { type, length } = this.#pending(cookie).question;
    return type === command.read ? length : 0;
  }

  data(cookie: number, offset: number | undefined, length: number): Uint8Array | undefined {
    return this.#pending(cookie).assembly?.data(offset, length);
  }

  hole(cookie: number, offset: number, length: number): void {
    this.#pending(cookie).assembly?.hole(offset, length);
  }

  status(cookie: number, contextId: number, extents: readonly StatusExtent[]): void {
    this.#pending(cookie).assembly?.status(contextId, extents);
  }

  error(cookie: number, errno: number, text: string, offset?: number): void {
    const pending = this.#pending(cookie);
    const { question } = pending;
    if (offset !== undefined && !isWithin(offset, question)) {
      throw protocolError(`an error at ${offset}, outside of the ${question.title}`);
    }
    const code = codeOfErrno(errno);
    const detail = text === '' ? '' : `: ${text}`;
    const place = offset === undefined ? '' : ` at ${offset}`;
    pending.failure ??= new NbdError(
      code,
      `NBD ${question.title} failed with ${code}${place}${detail}`,
    );
  }

  done(cookie: number): void {
    const pending = this.#pending(cookie);
    this.#inFlight.delete(cookie);
    const { assembly, failure } = pending;
    if (failure !== undefined) pending.reject(failure);
    else if (assembly !== undefined) {
      try {
        pending.resolve(assembly.result() as never);
      } catch (error) {
        pending.reject(error);
        throw error;
      }
    }
    if (failure?.code === 'ESHUTDOWN' && this.#ended === undefined) this.#onShutdown(failure);
    else this.#pump();
  }
}

function isWithin(offset: number, { offset: start, length }: Question): boolean {
  return offset >= start && offset < start + length;
}
