/** One line of the report; the keys of `npm run bench -- --json`. */
export interface Result {
  row: string;
  ours: number;
  theirs: number;
  unit: string;
  /** How many times better than the opponent; below 1 is worse. */
  ratio: number;
  target: string;
  met: boolean;
}

export interface Row {
  /** The word by which `npm run bench -- ROW` finds it. */
  readonly name: string;
  /** Against what, for the reader. */
  readonly opponent: string;
  run(): Promise<Result[]>;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

/** Seconds that `work` takes. */
export async function timed(work: () => Promise<unknown>): Promise<number> {
  const start = process.hrtime.bigint();
  await work();
  return Number(process.hrtime.bigint() - start) / 1e9;
}

/**
 * Runs both sides in turn, so that a machine that slows down slows both, and returns the medians of the
 * figure each returns. The first round warms up and does not count.
 */
export async function inTurn(
  rounds: number,
  ours: () => Promise<number>,
  theirs: () => Promise<number>,
): Promise<{ ours: number; theirs: number }> {
  const figures = { ours: [] as number[], theirs: [] as number[] };
  for (let round = 0; round <= rounds; round++) {
    const pair = { ours: await ours(), theirs: await theirs() };
    if (round === 0) continue;
    figures.ours.push(pair.ours);
    figures.theirs.push(pair.theirs);
  }
  return { ours: median(figures.ours), theirs: median(figures.theirs) };
}
