import { DigestSet } from './digest-set.ts';
import type { Store } from './store.ts';

/** Chunks that one run remembers: 10 TiB of disk, in at most 48 MiB. What is beyond is read again. */
const limit = 2_700_000;

/** The chunks that one run has found good: archives share most of theirs, and each is read once. */
export class VerifyRun {
  readonly store: Store;
  readonly #good = new DigestSet();

  constructor(store: Store) {
    this.store = store;
  }

  knows(digest: Buffer): boolean {
    return this.#good.has(digest);
  }

  add(digest: Buffer): void {
    if (this.#good.size < limit) this.#good.add(digest);
  }
}

const runs = new WeakMap<AbortSignal, VerifyRun>();

/** The run of a request: all archives that it has verified come with one signal. */
export function runOf(store: Store, signal: AbortSignal): VerifyRun {
  const known = runs.get(signal);
  if (known?.store === store) return known;
  const run = new VerifyRun(store);
  runs.set(signal, run);
  return run;
}
