import type { Logger } from '../sdk/provider.ts';
import { DeviceFilter } from './tar-devices.ts';
import { readTar } from './tar-input.ts';
import { showName, TarFault } from './tar-names.ts';
import { type TarMember, TarReader } from './tar-reader.ts';
import { SecondReader } from './tar-second-reader.ts';

/** What a container's archive holds. */
export interface TarReport {
  /** Members. */
  readonly entries: number;
  /** Of the archive without compression. */
  readonly bytes: number;
  /** The first few device nodes outside ./dev, for a log. */
  readonly devices: readonly string[];
  readonly deviceCount: number;
}

export interface CheckTarOptions {
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** What PVE's own check asks for. */
const leastMembers = 10;
const shownDevices = 10;

/**
 * Reads a container's archive to its end, and rejects with what is wrong with it before PVE has changed
 * anything: a name that leaves the container, damage, or what GNU tar might read differently [C7].
 */
export async function checkTar(path: string, options: CheckTarOptions): Promise<TarReport> {
  const { log, signal } = options;
  const filter = new DeviceFilter();
  const second = new SecondReader();
  const devices: string[] = [];
  let [entries, bytes, deviceCount, sbin] = [0, 0, 0, false];
  const reader = new TarReader(path, {
    member(member) {
      second.member(member);
      entries++;
      sbin ||= isSbin(member);
      if (!filter.isForbidden(member)) return;
      deviceCount++;
      if (devices.length < shownDevices) devices.push(showName(member.name));
    },
    body: (chunk) => second.body(chunk),
    global: (meta) => second.global(meta),
    end() {
      if (!sbin) throw new TarFault('it has no sbin, so it is not that of a container');
      if (entries < leastMembers) throw new TarFault(`it has only ${entries} members`);
    },
  });
  for await (const chunk of readTar(path, { signal })) {
    bytes += chunk.length;
    reader.push(chunk);
  }
  reader.end();
  log.debug('checked an archive', { path, entries, bytes, deviceCount });
  return { entries, bytes, devices, deviceCount };
}

/** As PVE's check looks for it in the list that GNU tar prints. */
function isSbin({ header, name }: TarMember): boolean {
  const text = name.toString('latin1').replace(/^\.\//, '');
  const folder = /^[05\0]$/.test(header.type);
  return folder ? text === 'sbin/' : /^[12]$/.test(header.type) && text === 'sbin';
}
