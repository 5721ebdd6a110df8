const zeroes = Buffer.alloc(4 * 1024 * 1024);

/** True if all bytes are zero; at the speed of memcmp, and at once for most data. */
export function isZero(data: Uint8Array): boolean {
  for (let at = 0; at < data.length; at += zeroes.length) {
    const end = Math.min(at + zeroes.length, data.length);
    if (
      data[at] !== 0 ||
      Buffer.compare(data.subarray(at, end), zeroes.subarray(0, end - at)) !== 0
    )
      return false;
  }
  return true;
}
