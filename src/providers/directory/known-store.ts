import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { BackupError } from '../../protocol/errors.ts';
import { ifMissing, writeAtomically } from './files.ts';

/**
 * Remembers on the node at which path there was a store: an empty directory there is then a mount point whose
 * file system is missing, and a new store in it would fill the disk below.
 */
export class KnownStore {
  readonly #file: string;
  readonly #path: string;
  #noted = false;

  constructor(cacheDir: string, path: string) {
    this.#file = join(cacheDir, 'store-path');
    this.#path = path;
  }

  async note(): Promise<void> {
    if (this.#noted) return;
    if ((await this.#read()) !== this.#path) await writeAtomically(this.#file, this.#path);
    this.#noted = true;
  }

  /** Rejects if there was a store at the path before. */
  async assertNew(): Promise<void> {
    if ((await this.#read()) !== this.#path) return;
    throw new BackupError(
      `${this.#path} has no store any more: is its file system mounted? To begin a new store there, remove ` +
        this.#file,
    );
  }

  async #read(): Promise<string | undefined> {
    return readFile(this.#file, 'utf8').catch(ifMissing);
  }
}
