import { BackupError } from '../../protocol/errors.ts';
import { withRegularFile } from './files.ts';

/** What a qcow2 image says of itself, as far as it may lead to other files. */
export interface Qcow2Header {
  /** Bytes of the disk. */
  readonly size: number;
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
}

const magic = 0x514649fb;
const backingFormatExtension = 0xe2792aca;
/** Of the incompatible features: data lies in another file. */
const externalData = 1n << 2n;
/** Header, extensions and the backing file's name lie in the first cluster; 64 KiB is the usual one. */
const headerBytes = 64 * 1024;

/**
 * Reads the header of an untrusted image (docs/interop/qcow2.txt). Not with `qemu-img info`: that would open the
 * data file that the image names, whatever it is (CVE-2024-4467).
 */
export async function readQcow2Header(path: string): Promise<Qcow2Header> {
  const header = Buffer.alloc(headerBytes);
  const length = await withRegularFile(
    path,
    async (file) => (await file.read(header, 0, headerBytes, 0)).bytesRead,
  );
  try {
    return parseHeader(header.subarray(0, length));
  } catch (cause) {
    const reason = cause instanceof BackupError ? cause.message : 'its header is damaged';
    throw new BackupError(`${path} is not an image that can be restored: ${reason}`, { cause });
  }
}

/** Throws RangeError where the header ends too early. */
function parseHeader(header: Buffer): Qcow2Header {
  if (header.readUInt32BE(0) !== magic) throw new BackupError('it is not qcow2');
  const version = header.readUInt32BE(4);
  if (version !== 2 && version !== 3) throw new BackupError(`it is qcow2 version ${version}`);
  if (header.readUInt32BE(32) !== 0) throw new BackupError('it is encrypted');
  if (version === 3 && (header.readBigUInt64BE(72) & externalData) !== 0n) {
    throw new BackupError('its data lies in another file');
  }
  const size = Number(header.readBigUInt64BE(24));
  if (!Number.isSafeInteger(size)) throw new BackupError('its size is impossible');
  const nameOffset = Number(header.readBigUInt64BE(8));
  const nameLength = header.readUInt32BE(16);
  const name = header.subarray(nameOffset, nameOffset + nameLength);
  if (name.length !== nameLength) throw new RangeError('the backing file name is cut off');
  return {
    size,
    backingFile: nameOffset === 0 ? undefined : name.toString('utf8'),
    backingFormat: findBackingFormat(header, version === 3 ? header.readUInt32BE(100) : 72),
  };
}

function findBackingFormat(header: Buffer, start: number): string | undefined {
  for (let at = start; at + 8 <= header.length; ) {
    const type = header.readUInt32BE(at);
    const length = header.readUInt32BE(at + 4);
    if (type === 0) return undefined;
    if (type === backingFormatExtension) return header.toString('utf8', at + 8, at + 8 + length);
    at += 8 + Math.ceil(length / 8) * 8;
  }
  return undefined;
}
