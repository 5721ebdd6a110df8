import type * as z from 'zod';
import { BackupError } from '../protocol/errors.ts';
import { requests } from '../protocol/methods.ts';
import { abortable } from '../toolbox/abort.ts';

type Requests = typeof requests;
type Answer<R extends keyof Requests> = z.output<Requests[R]['result']>;

/** Asks the shim for what only it can do. It answers while it waits for the result of `backup_vm`, else it refuses. */
export type AskShim = <R extends keyof Requests>(
  request: R,
  params: z.input<Requests[R]['params']>,
  signal: AbortSignal,
) => Promise<Answer<R>>;

/** Checks the answers that come over a channel. A signal ends the waiting at once. */
export function askShimOver(send: (method: string, params: object) => Promise<unknown>): AskShim {
  return async <R extends keyof Requests>(
    request: R,
    params: z.input<Requests[R]['params']>,
    signal: AbortSignal,
  ) => {
    const answer = requests[request].result.safeParse(
      await abortable(send(request, params), signal),
    );
    if (!answer.success) throw new BackupError(`the shim's answer to ${request} is not valid`);
    return answer.data as Answer<R>;
  };
}
