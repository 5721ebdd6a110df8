import { once } from 'node:events';
import { BackupError } from '../protocol/errors.ts';
import { abortable, abortError } from './abort.ts';
import { ProgramError, startProgram } from './run.ts';

export interface Lock {
  /** False once released, or lost because its holder was killed. */
  readonly held: boolean;
  /** Idempotent. */
  release(): Promise<void>;
}

const heldByOther = 75;

/**
 * A lock by flock(1), held by a child that lives as long as the pipe to it: when this process dies, the
 * kernel releases it. Undefined if others hold it and `wait` (false, or milliseconds) is over. The signal ends
 * the wait only.
 */
export async function acquireLock(
  path: string,
  kind: 'shared' | 'exclusive',
  options: { wait?: boolean | number; signal?: AbortSignal } = {},
): Promise<Lock | undefined> {
  const { wait = true, signal } = options;
  const patience =
    wait === true
      ? []
      : wait === false || wait <= 0
        ? ['--nonblock']
        : ['--timeout', String(wait / 1000)];
  if (signal?.aborted) throw abortError(signal);
  // Becomes cat once it has the lock; what cat sends back says so.
  const holder = await startProgram('flock', [
    `--${kind}`,
    ...patience,
    '--conflict-exit-code',
    String(heldByOther),
    '--no-fork',
    path,
    'cat',
  ]);
  const ended = holder.exited.then(() => Promise.reject(new BackupError(`lost the lock ${path}`)));
  const answer = Promise.race([once(holder.stdout, 'data'), ended]);
  holder.stdin.write('\n');
  try {
    await (signal === undefined ? answer : abortable(answer, signal));
  } catch (error) {
    await holder.stop();
    if (error instanceof ProgramError && error.exitCode === heldByOther) return undefined;
    throw error;
  }
  let held = true;
  const end = () => {
    held = false;
  };
  holder.exited.then(end, end);
  return {
    get held() {
      return held;
    },
    release: () => holder.stop(),
  };
}
