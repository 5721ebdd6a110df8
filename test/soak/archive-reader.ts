import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { archivedSha256, digestsOf } from '../e2e/support/store-reader.ts';

/** Reads archives again and again; one of which no file has changed since is not read anew. */
export class ArchiveReader {
  readonly #store: string;
  readonly #known = new Map<string, { state: string; sha256: string }>();

  constructor(store: string) {
    this.#store = store;
  }

  async sha256(name: string, device: string): Promise<string> {
    const state = await this.#state(name, device);
    const known = this.#known.get(name);
    if (known?.state === state) return known.sha256;
    const sha256 = await archivedSha256(this.#store, name, device);
    this.#known.set(name, { state, sha256 });
    return sha256;
  }

  /** Rejects if a file is missing. */
  async #state(name: string, device: string): Promise<string> {
    const index = join(this.#store, name, `${device}.index`);
    const chunks = (await digestsOf(index))
      .filter((digest) => !/^0+$/.test(digest))
      .map((digest) => join(this.#store, 'chunks', digest.slice(0, 2), digest));
    const stamps = chunks.map((path) => stampOf(`${path}.br`).catch(() => stampOf(path)));
    return (await Promise.all([stampOf(index), ...stamps])).join();
  }
}

/** Changes whenever the file does. */
async function stampOf(path: string): Promise<string> {
  const { ino, size, ctimeNs } = await stat(path, { bigint: true });
  return `${ino} ${size} ${ctimeNs}`;
}
