/** What a command ends with. */
export const exitStatus = { good: 0, faultFound: 1, cannotRun: 2 } as const;

/** Called in a way that its usage does not allow. */
export class UsageError extends Error {}

/** One command of the program. */
export interface Command {
  readonly usage: string;
  /** Resolves with the exit status. Rejects with a `UsageError`, or with one for people if it cannot run. */
  run(args: readonly string[]): Promise<number>;
}
