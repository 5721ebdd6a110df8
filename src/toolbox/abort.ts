import { type BackupError, cancelled, isBackupError } from '../protocol/errors.ts';

/** What work ends with whose signal was aborted: the signal's own reason if it is for people. */
export function abortError(signal: AbortSignal): BackupError {
  return isBackupError(signal.reason) ? signal.reason : cancelled();
}

/** Rejects as soon as the signal aborts, whether or not `work` listens to it. */
export function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(abortError(signal));
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}

/** Waits; rejects when the signal aborts. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(abortError(signal));
    const abort = () => {
      clearTimeout(timer);
      if (signal !== undefined) reject(abortError(signal));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', abort);
      resolve();
    }, ms);
    signal?.addEventListener('abort', abort, { once: true });
  });
}

/** Aborts the controller when one of the signals aborts, with its reason; call the result to stop that. */
export function follow(
  controller: AbortController,
  ...signals: (AbortSignal | undefined)[]
): () => void {
  const stops = signals.map((signal) => {
    const abort = () => controller.abort(signal?.reason);
    if (signal?.aborted) abort();
    signal?.addEventListener('abort', abort, { once: true });
    return () => signal?.removeEventListener('abort', abort);
  });
  return () => {
    for (const stop of stops) stop();
  };
}
