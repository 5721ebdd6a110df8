import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import { resolve } from 'node:path';

/** An empty store in user space, which can be made to answer nobody. */
export class FuseStore {
  readonly path: string;
  readonly #process: ChildProcess;

  private constructor(path: string, process: ChildProcess) {
    this.path = path;
    this.#process = process;
  }

  /** Sizes that `status` tells. */
  static readonly total = 1000 * 4096;
  static readonly used = 400 * 4096;

  static async mount(path: string): Promise<FuseStore> {
    await mkdir(path);
    const script = resolve('test/e2e/support/fuse-store.pl');
    const daemon = spawn('perl', [script, path], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(daemon.stdout, 'data');
    return new FuseStore(path, daemon);
  }

  hang(): void {
    this.#process.kill('SIGSTOP');
  }

  answer(): void {
    this.#process.kill('SIGCONT');
  }

  async unmount(): Promise<void> {
    const exit = once(this.#process, 'exit');
    this.answer();
    this.#process.kill('SIGTERM');
    await exit;
  }
}
