const shownLength = 200;

/** What is wrong with a tar archive or one of its members; the reader adds their names. */
export class TarFault extends Error {}

/** A fault that leaves nothing to be read behind it. */
export class TarDamage extends TarFault {}

/** A name for a log: one line, quoted, without anything that a terminal would obey. */
export function showName(name: Buffer): string {
  const text = name.toString('utf8');
  const clipped = text.length > shownLength ? `${text.slice(0, shownLength)}…` : text;
  const escaped = JSON.stringify(clipped).replace(
    /[\p{Cc}\p{Cf}\u2028\u2029]/gu,
    (char) => `\\u{${(char.codePointAt(0) ?? 0).toString(16)}}`,
  );
  return escaped;
}

/** Refuses a name that GNU tar would not extract below the target directory as it stands. */
export function checkName(name: Buffer, what: 'name' | 'link target'): void {
  if (name.length === 0) throw new TarFault(`its ${what} is empty`);
  if (name[0] === slash) throw new TarFault(`its ${what} is absolute: ${showName(name)}`);
  if (components(name).includes('..')) {
    throw new TarFault(`its ${what} climbs out through "..": ${showName(name)}`);
  }
}

/** The same string for all spellings of one name: without `.` and empty components. */
export function plainName(name: Buffer): string {
  return components(name)
    .filter((part) => part !== '' && part !== '.')
    .join('/');
}

/** True for what PVE leaves out at restore, by the pattern `./dev/*` [C7]. */
export function isBelowDev(name: Buffer): boolean {
  return name.length > devPrefix.length && name.subarray(0, devPrefix.length).equals(devPrefix);
}

/** The bytes up to the first NUL. */
export function untilNul(bytes: Buffer): Buffer {
  const end = bytes.indexOf(0);
  return end < 0 ? bytes : bytes.subarray(0, end);
}

const slash = 0x2f;
const devPrefix = Buffer.from('./dev/');

/** As latin1, which keeps any bytes apart. */
function components(name: Buffer): string[] {
  return name.toString('latin1').split('/');
}
