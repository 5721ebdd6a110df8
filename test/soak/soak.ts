export interface SoakOptions {
  readonly kills: number;
  /** From 0 to below 1. */
  readonly random: () => number;
  readonly say: (line: string) => void;
}

/** `harmed`: archives that are not what was backed up, and work that fails unharmed; `left`: what stays. */
export interface SoakResult {
  readonly kills: number;
  readonly harmed: number;
  readonly left: number;
}
