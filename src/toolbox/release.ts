import { BackupError, messageOf } from '../protocol/errors.ts';

interface Step {
  readonly name: string;
  readonly release: () => Promise<void> | void;
}

const stepMs = 10_000;

/** What was taken, to be given back in reverse order, whatever happens on the way. */
export class ReleaseStack {
  readonly #steps: Step[] = [];
  readonly #stepMs: number;
  #released: Promise<void> | undefined;

  /** No step may hold up the others for longer than `stepMs`. */
  constructor(options: { stepMs?: number } = {}) {
    this.#stepMs = options.stepMs ?? stepMs;
  }

  /** What comes too late, after `release`, is given back at once. */
  add(name: string, release: () => Promise<void> | void): void {
    this.#steps.push({ name, release });
    const earlier = this.#released;
    if (earlier === undefined) return;
    this.#released = this.#run().then(() => earlier);
    // The next `release` reports it, if anybody asks.
    this.#released.catch(() => undefined);
  }

  /** Idempotent. Runs every step and then rejects if one failed. */
  release(): Promise<void> {
    this.#released ??= this.#run();
    return this.#released;
  }

  async #run(): Promise<void> {
    const failures: BackupError[] = [];
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await within(this.#stepMs, step.release);
      } catch (error) {
        const text = `cannot release ${step.name}: ${messageOf(error)}`;
        failures.push(new BackupError(text, { cause: error }));
      }
    }
    const [first, ...others] = failures;
    if (first === undefined) return;
    if (others.length === 0) throw first;
    const text = failures.map((failure) => failure.message).join('; ');
    throw new BackupError(text, { cause: new AggregateError(failures) });
  }
}

async function within(ms: number, work: () => Promise<void> | void): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no end after ${ms / 1000} s`)), ms);
  });
  try {
    await Promise.race([work(), late]);
  } finally {
    clearTimeout(timer);
  }
}
