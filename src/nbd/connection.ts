import { type Assembly, PlainAssembly, ReadAssembly, StatusAssembly } from './assembly.ts';
import type { NbdConnection, NbdInfo, NbdReadOptions, NbdWriteOptions } from './client.ts';
import type { Export } from './client-handshake.ts';
import { command, commandFlag, transmissionFlag } from './constants.ts';
import type { StatusExtent } from './reply-message.ts';
import type { Question, Transmission } from './transmission.ts';

/** The largest length on the wire, and the largest that is a multiple of any block size. */
const maxLength = 0xffff_ffff;
const maxStatusLength = 0xffff_0000;

/** Checks what callers ask for and turns it into requests. */
export class Connection implements NbdConnection {
  readonly size: number;
  readonly info: NbdInfo;
  readonly contexts: ReadonlySet<string>;
  readonly #contextIds: ReadonlyMap<string, number>;
  readonly #canFua: boolean;
  readonly #transmission: Transmission;
  readonly #disconnect: () => Promise<void>;
  #closing: Promise<void> | undefined;

  constructor(chosen: Export, transmission: Transmission, disconnect: () => Promise<void>) {
    const has = (flag: number) => (chosen.flags & flag) !== 0;
    this.size = chosen.size;
    this.info = {
      readOnly: has(transmissionFlag.readOnly),
      canTrim: has(transmissionFlag.sendTrim),
      canFlush: has(transmissionFlag.sendFlush),
      canWriteZeroes: has(transmissionFlag.sendWriteZeroes),
      canMultiConn: has(transmissionFlag.canMultiConn),
      canDf: chosen.structured && has(transmissionFlag.sendDf),
      blockSize: chosen.blockSize,
    };
    this.#canFua = has(transmissionFlag.sendFua);
    this.contexts = new Set(chosen.contexts.keys());
    this.#contextIds = chosen.contexts;
    this.#transmission = transmission;
    this.#disconnect = disconnect;
  }

  async read(
    offset: number,
    length: number,
    { df = true, signal, into }: NbdReadOptions = {},
  ): Promise<Buffer> {
    const title = this.#checked('read', offset, length, this.info.blockSize.maximum);
    const unfragmented = df && this.info.canDf;
    const flags = unfragmented ? commandFlag.df : 0;
    const question = { title, type: command.read, flags, offset, length };
    if (into !== undefined && into.length !== length) {
      throw new RangeError(`${title} into a buffer of ${into.length} bytes`);
    }
    return this.#ask(question, new ReadAssembly(offset, length, { unfragmented, into }), signal);
  }

  async write(offset: number, data: Uint8Array, options: NbdWriteOptions = {}): Promise<void> {
    const length = data.length;
    const title = this.#checked('write', offset, length, this.info.blockSize.maximum);
    const flags = this.#writeFlags(title, options);
    const question = { title, type: command.write, flags, offset, length, payload: data };
    return this.#ask(question, new PlainAssembly(), options.signal);
  }

  async writeZeroes(offset: number, length: number, options: NbdWriteOptions = {}): Promise<void> {
    const title = this.#checked('write of zeroes', offset, length, maxLength);
    if (!this.info.canWriteZeroes) throw new RangeError(`${title}: the export cannot do it`);
    const flags = this.#writeFlags(title, options);
    const question = { title, type: command.writeZeroes, flags, offset, length };
    return this.#ask(question, new PlainAssembly(), options.signal);
  }

  async trim(
    offset: number,
    length: number,
    { signal }: { signal?: AbortSignal } = {},
  ): Promise<void> {
    const title = this.#checked('trim', offset, length, maxLength);
    if (!this.info.canTrim) throw new RangeError(`${title}: the export cannot do it`);
    const question = { title, type: command.trim, flags: this.#writeFlags(title), offset, length };
    return this.#ask(question, new PlainAssembly(), signal);
  }

  async flush({ signal }: { signal?: AbortSignal } = {}): Promise<void> {
    if (!this.info.canFlush) throw new RangeError('flush: the export cannot do it');
    const question = { title: 'flush', type: command.flush, flags: 0, offset: 0, length: 0 };
    return this.#ask(question, new PlainAssembly(), signal);
  }

  async blockStatus(
    context: string,
    offset: number,
    length: number,
    { signal }: { signal?: AbortSignal } = {},
  ): Promise<StatusExtent[]> {
    const id = this.#contextIds.get(context);
    if (id === undefined) throw new RangeError(`the server did not grant the context '${context}'`);
    const title = this.#checked('block status', offset, length, Number.MAX_SAFE_INTEGER);
    // The server may answer for less than was asked, so asking for less is no change.
    const asked = Math.min(length, maxStatusLength);
    const question = { title, type: command.blockStatus, flags: 0, offset, length: asked };
    const assembly = new StatusAssembly(id, this.#contextIds.values(), asked);
    return this.#ask(question, assembly, signal);
  }

  close(): Promise<void> {
    this.#closing ??= this.#disconnect();
    return this.#closing;
  }

  #ask<T>(question: Question, assembly: Assembly<T>, signal?: AbortSignal): Promise<T> {
    return this.#transmission.request(question, assembly, signal);
  }

  #writeFlags(title: string, { fua = false }: { fua?: boolean } = {}): number {
    if (this.info.readOnly) throw new RangeError(`${title}: the export is read-only`);
    if (fua && !this.#canFua) throw new RangeError(`${title}: the export cannot do FUA`);
    return fua ? commandFlag.fua : 0;
  }

  /** The request's title, if it may be sent. */
  #checked(verb: string, offset: number, length: number, most: number): string {
    const title = `${verb} of ${length} bytes at ${offset}`;
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0) {
      throw new RangeError(`${title}: not whole numbers`);
    }
    if (length < 1) throw new RangeError(`${title}: nothing to do`);
    if (length > most) throw new RangeError(`${title}: the server takes ${most} bytes at a time`);
    if (offset + length > this.size) {
      throw new RangeError(`${title}: the export ends at ${this.size}`);
    }
    const { minimum } = this.info.blockSize;
    if (offset % minimum !== 0 || length % minimum !== 0) {
      throw new RangeError(`${title}: not a multiple of ${minimum}`);
    }
    return title;
  }
}
