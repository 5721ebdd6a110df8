import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { makeUpid } from '../../toolbox/upid.ts';
import { digestLength } from './chunk-codec.ts';
import { archiveNames } from './directories.ts';
import { codeOf, withFile, writeAtomically } from './files.ts';
import { member } from './layout.ts';
import type { Store } from './store.ts';
import { writeVerification } from './verify-result.ts';

const step = 1024 * 1024;

/** The digests of `wanted` that an index names. */
async function namedIn(path: string, wanted: ReadonlySet<string>): Promise<Set<string>> {
  const named = new Set<string>();
  const piece = Buffer.alloc(step);
  await withFile(path, 'r', async (file) => {
    for (let at = 0; ; at += step) {
      const { bytesRead } = await file.read(piece, 0, step, at);
      for (let offset = 0; offset + digestLength <= bytesRead; offset += digestLength) {
        const hex = piece.toString('hex', offset, offset + digestLength);
        if (wanted.has(hex)) named.add(hex);
      }
      if (bytesRead < step) return;
    }
  });
  return named;
}

async function markArchive(
  store: Store,
  name: string,
  damaged: ReadonlySet<string>,
  upid: string,
): Promise<void> {
  const directory = store.layout.archive(name);
  const named = new Set<string>();
  for (const file of await readdir(directory)) {
    if (!file.endsWith('.index')) continue;
    for (const hex of await namedIn(join(directory, file), damaged)) named.add(hex);
  }
  if (named.size === 0) return;
  store.log.error(`archive ${name} has ${named.size} damaged chunks`);
  await writeAtomically(join(directory, member.damaged), `${[...named].join('\n')}\n`);
  const problems = [...named].map((hex) => `chunk ${hex} is damaged`);
  await writeVerification(store.layout, name, upid, problems);
}

/**
 * Notes in every archive which of the damaged chunks it names: no incremental backup builds on it any more, and it
 * is listed as one that failed its verification. Passes over the archives in `visited`, and adds the others.
 */
export async function markDamaged(
  store: Store,
  damaged: ReadonlySet<string>,
  options: { upid?: string; visited?: Set<string> } = {},
): Promise<void> {
  if (damaged.size === 0) return;
  const { upid = makeUpid('verify'), visited = new Set() } = options;
  for await (const name of archiveNames(store.layout)) {
    if (visited.has(name)) continue;
    visited.add(name);
    await markArchive(store, name, damaged, upid).catch((error: unknown) => {
      // Removed meanwhile.
      if (codeOf(error) !== 'ENOENT') throw error;
    });
  }
}
