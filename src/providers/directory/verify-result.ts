import { join } from 'node:path';
import * as z from 'zod';
import type { Verification } from '../../sdk/provider.ts';
import { writeAtomically } from './files.ts';
import { type Layout, member } from './layout.ts';
import { touchGuest } from './touch-guest.ts';

/** Bytes that the file may have. */
export const maxVerification = 64 * 1024;
const maxProblems = 100;

/** PVE's web interface fails on a task id of another shape. */
const upid = z
  .string()
  .regex(/^UPID:[^\s:]+:[0-9A-F]{8}:[0-9A-F]{8,9}:[0-9A-F]{8}:[^\s:]+:[^\s:]*:[^\s:]+:$/);
const verificationFile = z.object({ state: z.enum(['ok', 'failed']), upid });

/** The last verification of an archive; undefined if there was none, or its result is damaged. */
export function parseVerification(read: () => Buffer | undefined): Verification | undefined {
  try {
    const text = read();
    if (text === undefined) return undefined;
    return verificationFile.parse(JSON.parse(text.toString()));
  } catch {
    return undefined;
  }
}

/** Keeps the result with the archive; the first problems are for whoever reads the file. */
export async function writeVerification(
  layout: Layout,
  name: string,
  upid: string,
  problems: readonly string[],
): Promise<void> {
  const state = problems.length === 0 ? 'ok' : 'failed';
  const kept = problems.slice(0, maxProblems).map((problem) => problem.slice(0, 300));
  const text = JSON.stringify({ state, upid, problems: kept }, null, 2);
  await writeAtomically(join(layout.archive(name), member.verification), `${text}\n`);
  await touchGuest(layout, name);
}
