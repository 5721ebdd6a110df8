import { NbdError } from '../nbd/errors.ts';
import { BackupError, isBackupError, messageOf } from '../protocol/errors.ts';

const answers = new Set(['EPERM', 'EIO', 'ENOMEM', 'EINVAL', 'ENOSPC', 'EOVERFLOW', 'ENOTSUP']);

/** The server said no, and the connection goes on. */
export function isAnswer(error: unknown): error is NbdError {
  return error instanceof NbdError && answers.has(error.code);
}

/** An error of QEMU's snapshot access, over NBD or as a file, for people [E7]. */
export function explained(error: unknown, text: string): BackupError {
  if (isBackupError(error)) return error;
  const broken = (error as { code?: unknown }).code === 'EINVAL';
  const reason = broken
    ? "QEMU's snapshot is broken, most likely because the fleecing image is full; free space on the" +
      ' fleecing storage or choose a larger one, then run the backup again'
    : messageOf(error);
  return new BackupError(`${text}: ${reason}`, { cause: error });
}
