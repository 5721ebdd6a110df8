import { utimes } from 'node:fs/promises';
import { dirname } from 'node:path';
import { ifMissing } from './files.ts';
import type { Layout } from './layout.ts';

/**
 * To be called after every change inside an archive that its list entry shows: a guest's directory tells by its
 * times whether anything has changed in it, so that no list has to look into each archive.
 */
export async function touchGuest(layout: Layout, name: string): Promise<void> {
  const now = new Date();
  await utimes(dirname(layout.archive(name)), now, now).catch(ifMissing);
}
