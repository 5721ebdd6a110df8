/** The two parts of a device number, as Linux packs them into 32 bits. */
export function deviceNumbers(dev: number): { major: number; minor: number } {
  return { major: (dev >> 8) & 0xfff, minor: (dev & 0xff) | ((dev >> 12) & 0xfff00) };
}
