import { TarDamage, TarFault, untilNul } from './tar-names.ts';

export const blockSize = 512;
/** Of a file, as the kernel counts. */
export const largestOffset = 2n ** 63n - 1n;

/** By which GNU tar tells formats: `ustar` with NUL, `ustar` with blanks, neither. */
type TarMagic = 'posix' | 'gnu' | 'v7';

/** A header block, read as strictly as any tar may. */
export interface TarHeader {
  readonly block: Buffer;
  readonly type: string;
  readonly magic: TarMagic;
  /** With the prefix, if there is one. */
  readonly name: Buffer;
  readonly linkName: Buffer;
  readonly size: number;
}

/** Decodes a header block that is not a zero block. */
export function decodeHeader(block: Buffer): TarHeader {
  const recorded = number(block, 148, 8);
  if (recorded === undefined || recorded !== checksum(block)) {
    throw new TarDamage('there is no valid header where one belongs (checksum)');
  }
  const size = number(block, 124, 12);
  if (size === undefined) throw new TarFault('the size in its header is no number');
  const magic = magicOf(block);
  const prefix = magic === 'posix' ? text(block, 345, 155) : Buffer.alloc(0);
  const name = text(block, 0, 100);
  return {
    block,
    type: String.fromCharCode(block[156] ?? 0),
    magic,
    name: prefix.length === 0 ? name : Buffer.concat([prefix, Buffer.from('/'), name]),
    linkName: text(block, 157, 100),
    size,
  };
}

/**
 * Octal, or base-256 of a positive number. GNU tar takes more (leading NULs, base-64, negative numbers); what
 * others may read differently is no number here.
 */
export function number(block: Buffer, at: number, length: number): number | undefined {
  const value = bigNumber(block, at, length);
  return value === undefined || value > Number.MAX_SAFE_INTEGER ? undefined : Number(value);
}

/** The same for places in sparse files, which reach up to 2^63. */
export function bigNumber(block: Buffer, at: number, length: number): bigint | undefined {
  const field = block.subarray(at, at + length);
  if (field[0] === 0x80) {
    const value = BigInt(`0x${field.toString('hex', 1)}`);
    return value > largestOffset ? undefined : value;
  }
  const [, digits] = /^ *([0-7]+)[ \0]*$/.exec(field.toString('latin1')) ?? [];
  return digits === undefined ? undefined : BigInt(`0o${digits}`);
}

/** With the bytes that follow a body up to the next block. */
export function padded(size: number): number {
  return Math.ceil(size / blockSize) * blockSize;
}

/** Headers of star, whose sparse files GNU tar reads in a third way. */
export function isStar(block: Buffer): boolean {
  const octal = (at: number) => /^[0-7]/.test(String.fromCharCode(block[at] ?? 0));
  return block[475] === 0 && octal(476) && block[487] === 0x20 && octal(488) && block[499] === 0x20;
}

function text(block: Buffer, at: number, length: number): Buffer {
  return untilNul(block.subarray(at, at + length));
}

function magicOf(block: Buffer): TarMagic {
  const magic = block.toString('latin1', 257, 265);
  if (magic.startsWith('ustar\0')) return 'posix';
  return magic === 'ustar  \0' ? 'gnu' : 'v7';
}

function checksum(block: Buffer): number {
  let sum = 8 * 0x20;
  for (let at = 0; at < blockSize; at++) {
    if (at < 148 || at >= 156) sum += block[at] ?? 0;
  }
  return sum;
}
