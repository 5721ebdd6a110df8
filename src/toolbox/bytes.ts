const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** `12.3 MiB`, as vzdump writes sizes. */
export function formatBytes(bytes: number, digits = 1): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value.toFixed(unit === 0 ? 0 : digits)} ${units[unit]}`;
}

/** `12.3 MiB/s`; never below 0, since what was counted late may seem to shrink. */
export function formatRate(bytes: number, seconds: number): string {
  return `${formatBytes(Math.max(bytes, 0) / Math.max(seconds, 0.001))}/s`;
}

/** `1.20 MiB (34%)`, of a whole that is not 0. */
export function formatShare(part: number, whole: number): string {
  return `${formatBytes(part, 2)} (${Math.floor((part / whole) * 100)}%)`;
}
