import type { Logger } from '../sdk/provider.ts';
import { DeviceFilter, shownDevices } from './tar-devices.ts';
import { readTar } from './tar-input.ts';
import { TarFault } from './tar-names.ts';
import { type TarMember, TarReader } from './tar-reader.ts';
import { SecondReader } from './tar-second-reader.ts';

/** What a container's archive holds. */
export interface TarReport {
  /** Members. */
  readonly entries: number;
  /** The first few device nodes outside ./dev, by name. */
  readonly devices: readonly Buffer[];
  readonly deviceCount: number;
}

export interface CheckTarOptions {
  readonly log: Logger;
  readonly signal: AbortSignal;
  /** Of the file, in lower-case hexadecimal: the check then includes it. */
  readonly sha256?: string | undefined;
}

/** What PVE's own check asks for. */
export const leastMembers = 10;

/**
 * Reads a container's archive to its end, and rejects with what is wrong with it before PVE has changed
 * anything: a name that leaves the container, damage, or what GNU tar might read differently [C7].
 */
export async function checkTar(path: string, options: CheckTarOptions): Promise<TarReport> {
  const { log, signal, sha256 } = options;
  const check = new TarCheck(path);
  let fault: unknown;
  for await (const chunk of readTar(path, { signal, sha256 })) {
    if (fault !== undefined) continue;
    try {
      check.push(chunk);
    } catch (error) {
      if (sha256 === undefined) throw error;
      // Maybe it only follows from damage, which the end will show.
      fault = error;
    }
  }
  if (fault !== undefined) throw fault;
  const report = check.end();
  log.debug('checked an archive', { path, entries: report.entries, devices: report.deviceCount });
  return report;
}

/** The check itself, of bytes that come in pieces of any size. */
export class TarCheck {
  readonly #reader: TarReader;
  readonly #filter = new DeviceFilter();
  readonly #second = new SecondReader();
  readonly #devices: Buffer[] = [];
  #entries = 0;
  #deviceCount = 0;
  #sbin = false;

  constructor(path: string) {
    this.#reader = new TarReader(path, {
      member: (member) => this.#member(member),
      body: (chunk) => this.#second.body(chunk),
      global: (meta) => this.#second.global(meta),
      end: () => this.#whole(),
    });
  }

  push(chunk: Buffer): void {
    this.#reader.push(chunk);
  }

  end(): TarReport {
    this.#reader.end();
    return { entries: this.#entries, devices: this.#devices, deviceCount: this.#deviceCount };
  }

  #member(member: TarMember): void {
    this.#second.member(member);
    this.#entries++;
    this.#sbin ||= isSbin(member);
    if (!this.#filter.isForbidden(member)) return;
    this.#deviceCount++;
    if (this.#devices.length < shownDevices) this.#devices.push(Buffer.from(member.name));
  }

  #whole(): void {
    if (!this.#sbin) throw new TarFault('it has no sbin, so it is not that of a container');
    if (this.#entries < leastMembers) throw new TarFault(`it has only ${this.#entries} members`);
  }
}

/** As PVE's check looks for it in the list that GNU tar prints. */
function isSbin({ header, name }: TarMember): boolean {
  const text = name.toString('latin1').replace(/^\.\//, '');
  const folder = /^[05\0]$/.test(header.type);
  return folder ? text === 'sbin/' : /^[12]$/.test(header.type) && text === 'sbin';
}
