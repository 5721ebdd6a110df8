/** Numeric codes of the errors that cross the wire (JSON-RPC 2.0 keeps -32768 to -32000 for itself). */
export const errorCode = {
  /** The administrator, the store or the guest is at fault; the message says what to do. */
  expected: 1,
  /** The work was cancelled, by a signal or a shutdown. */
  cancelled: 2,
  /** The provider broke its contract or threw something of its own. */
  provider: 3,
  /** A message did not match the protocol. */
  invalid: -32602,
  unknownMethod: -32601,
} as const;

export type ErrorCode = (typeof errorCode)[keyof typeof errorCode];

const brand = Symbol.for('pve-backup-bridge.BackupError');

/**
 * An error for people: one line that says what is wrong and what to do. It crosses the wire with its
 * message; `cause` goes to the debug log. Everything else that is thrown counts as a bug of the provider.
 */
export class BackupError extends Error {
  readonly code: ErrorCode;

  constructor(message: string, options: { cause?: unknown; code?: ErrorCode } = {}) {
    super(oneLine(message), 'cause' in options ? { cause: options.cause } : undefined);
    this.name = 'BackupError';
    this.code = options.code ?? errorCode.expected;
    Object.defineProperty(this, brand, { value: true });
  }
}

/** Matches by brand, since a vendor's bundle carries its own copy of this class. */
export function isBackupError(error: unknown): error is BackupError {
  return typeof error === 'object' && error !== null && brand in error;
}

/** The error that aborted work ends with. */
export function cancelled(reason = 'cancelled'): BackupError {
  return new BackupError(reason, { code: errorCode.cancelled });
}

/** The text of anything thrown, on one line. */
export function messageOf(error: unknown): string {
  return oneLine(error instanceof Error ? error.message : String(error));
}

/** Folds line breaks and other control characters, so that a text cannot forge lines of a log. */
export function oneLine(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what has to go
  return text.trim().replace(/[\u0000-\u001f\u007f\u2028\u2029]+/g, ' ');
}
