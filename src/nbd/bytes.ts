const word = 0x1_0000_0000;

/** Reads 64 bits, unsigned. Beyond 2^53 the result is rounded, but stays beyond: check ranges. */
export function readU64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * word + bytes.readUInt32BE(at + 4);
}

/** Writes an integer below 2^53 as 64 bits. */
export function writeU64(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32BE(Math.floor(value / word), at);
  bytes.writeUInt32BE(value % word, at + 4);
}

/** 32 bits of length, then the text. */
export function lengthPrefixed(text: string): Buffer {
  const bytes = Buffer.from(text);
  const prefix = Buffer.alloc(4);
  prefix.writeUInt32BE(bytes.length);
  return Buffer.concat([prefix, bytes]);
}
