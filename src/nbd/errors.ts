import { oneLine } from '../protocol/errors.ts';

const errnos = {
  EPERM: 1,
  ENOENT: 2,
  EIO: 5,
  ENOMEM: 12,
  EACCES: 13,
  EINVAL: 22,
  ENOSPC: 28,
  EPROTO: 71,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ECONNRESET: 104,
  ESHUTDOWN: 108,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
} as const;

export type NbdErrorCode = keyof typeof errnos;

/** The values that the protocol allows on the wire. */
const wireCodes: readonly NbdErrorCode[] = [
  'EPERM',
  'EIO',
  'ENOMEM',
  'EINVAL',
  'ENOSPC',
  'EOVERFLOW',
  'ENOTSUP',
  'ESHUTDOWN',
];

/**
 * What a request or a connection failed with. Besides the server's own errors: EPROTO for a server that
 * broke the protocol, ECONNRESET for a lost connection, ESHUTDOWN for a closed one, ETIMEDOUT.
 */
export class NbdError extends Error {
  readonly errno: number;
  readonly code: string;

  constructor(code: NbdErrorCode, message: string, options?: { cause?: unknown }) {
    super(oneLine(message), options);
    this.name = 'NbdError';
    this.code = code;
    this.errno = errnos[code];
  }
}

/** The server broke the protocol: the connection cannot be used any more. */
export function protocolError(message: string): NbdError {
  return new NbdError('EPROTO', `the NBD server broke the protocol: ${message}`);
}

/** Values that the protocol does not know count as EINVAL, as it says. */
export function codeOfErrno(errno: number): NbdErrorCode {
  return wireCodes.find((code) => errnos[code] === errno) ?? 'EINVAL';
}

/** The value of `code` on the wire. */
export function errnoOf(code: NbdErrorCode): number {
  return errnos[code];
}

/** Wraps what a socket failed with. */
export function connectionError(message: string, cause: unknown): NbdError {
  const code = (cause as { code?: unknown } | undefined)?.code;
  const known = typeof code === 'string' && Object.hasOwn(errnos, code);
  const text = cause instanceof Error ? `${message}: ${cause.message}` : message;
  return new NbdError(known ? (code as NbdErrorCode) : 'ECONNRESET', text, { cause });
}
