import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'vitest';
import type { PveNode, PveProgram } from '../../../fixtures/pve/pve-node.ts';

const program = '../../../test/e2e/support/pvestatd.pl';
/** All storages of a node are asked one after the other: a second for Perl and a busy machine [A12]. */
export const mostSeconds = 2.5;

export interface Poll {
  readonly seconds: number;
  readonly info: Readonly<Record<string, { active: number; total: number; used: number }>>;
}

/** The daemon of a node that polls its storages, here whenever it is told to. */
export class Pvestatd {
  readonly #process: PveProgram;
  readonly #answers: AsyncIterator<string>;

  /** `pingTimeout`: seconds after which a deaf host is killed. */
  constructor(node: PveNode, { pingTimeout }: { pingTimeout?: number } = {}) {
    this.#process = node.run(program, pingTimeout === undefined ? [] : [String(pingTimeout)]);
    this.#answers = createInterface({ input: this.#process.stdout })[Symbol.asyncIterator]();
  }

  async poll(): Promise<Poll> {
    this.#process.stdin.write('\n');
    const { value, done } = await this.#answers.next();
    if (done) throw new Error('pvestatd has ended');
    return JSON.parse(value) as Poll;
  }

  /** Polls until all storages are active, each time soon enough; a busy machine starts hosts slowly. */
  async pollUntilActive(): Promise<void> {
    for (let count = 0; ; count++) {
      const { seconds, info } = await this.poll();
      expect(seconds).toBeLessThan(mostSeconds * 2);
      if (Object.values(info).every(({ active }) => active === 1)) return;
      expect(count).toBeLessThan(5);
      await sleep(200);
    }
  }

  async end(): Promise<void> {
    this.#process.stdin.end();
    const { exitCode } = await this.#process;
    expect(exitCode).toBe(0);
  }
}
