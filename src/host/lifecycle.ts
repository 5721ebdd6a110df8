import { processStartTimeSync } from '../toolbox/processes.ts';

const idleMs = 60_000;
const watchMs = 2_000;
const endMs = 8_000;

/** A process for ever. */
export interface Owner {
  readonly pid: number;
  /** Clock ticks since boot, field 22 of /proc/PID/stat. */
  readonly startTime: number;
}

/** Decides when this process has to end, and ends it: aborts, releases, exits [A5, A6]. */
export class Lifecycle {
  readonly #abort = new AbortController();
  readonly #note: (message: string) => void;
  #release: (reason: string) => Promise<void> = async () => {};
  #busy = 0;
  #idleTimer: NodeJS.Timeout | undefined;
  #ending = false;

  /** `note` takes lines for the crash log. */
  constructor(note: (message: string) => void) {
    this.#note = note;
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
    process.on('uncaughtException', (error) => {
      note(error.stack ?? error.message);
      this.end(`a fault of the provider: ${error.message}`);
    });
    this.#restartIdleTimer();
  }

  /** What has to be released before the process exits. */
  onEnd(release: (reason: string) => Promise<void>): void {
    this.#release = release;
  }

  /** Aborts when the process ends. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** Ends once the owner has, even where a copy of it still holds our socket. */
  watch(owner: Owner): void {
    setInterval(() => {
      if (processStartTimeSync(owner.pid) !== owner.startTime) this.end('the owner has ended');
    }, watchMs).unref();
  }

  /** Runs `work` and keeps the process alive meanwhile. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    this.hold();
    try {
      return await work();
    } finally {
      this.unhold();
    }
  }

  /** Something is open that a new process would not know: do not leave for idleness. */
  hold(): void {
    this.#busy++;
    clearTimeout(this.#idleTimer);
  }

  unhold(): void {
    this.#busy--;
    this.#restartIdleTimer();
  }

  end(reason: string): void {
    if (this.#ending) return;
    this.#ending = true;
    this.#note(`ending: ${reason}`);
    setTimeout(() => process.exit(1), endMs);
    this.#abort.abort(new Error(reason));
    this.#release(reason).then(
      () => process.exit(0),
      () => process.exit(1),
    );
  }

  #restartIdleTimer(): void {
    clearTimeout(this.#idleTimer);
    if (this.#busy > 0) return;
    this.#idleTimer = setTimeout(() => this.end('idle'), idleMs);
  }
}
