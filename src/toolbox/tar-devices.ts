import { number, type TarHeader } from './tar-header.ts';
import { isBelowDev, plainName, showName, TarFault } from './tar-names.ts';
import type { TarMember } from './tar-reader.ts';

/** More than any container has; they are kept in memory. */
const maxDevices = 100_000;
export const shownDevices = 10;

/** Finds the members that an unprivileged restore cannot create, as they go by [C7]. */
export class DeviceFilter {
  readonly #devices = new Set<string>();

  /** True for a device node that PVE would try to create, and for a hard link to any device node. */
  isForbidden({ header, name, linkName }: TarMember): boolean {
    const { type } = header;
    const link = type === '1' && this.#devices.has(plainName(linkName));
    if (type !== '3' && type !== '4' && !link) return false;
    if (!link && isWhiteout(header) && !isBelowDev(name)) return false;
    this.#devices.add(plainName(name));
    if (this.#devices.size > maxDevices) {
      throw new TarFault(`it has more than ${maxDevices} device nodes`);
    }
    return !isBelowDev(name);
  }
}

/** What overlayfs puts where a file of a lower layer is gone: any user may make one, since Linux 5.8. */
function isWhiteout({ type, block }: TarHeader): boolean {
  return type === '3' && number(block, 329, 8) === 0 && number(block, 337, 8) === 0;
}

/** For the task log; `names` are the first few of `count`. */
export function deviceWarning(names: readonly Buffer[], count: number): string {
  const shown = names.slice(0, shownDevices).map(showName);
  const others = count - shown.length;
  const list = `${shown.join(', ')}${others > 0 ? ` and ${others} more` : ''}`;
  return `device nodes outside ./dev cannot be restored and are left out: ${list}`;
}
