import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ArchiveInfo } from '../../sdk/provider.ts';
import { sha256 } from './archive-members.ts';
import { readBounded } from './files.ts';

const format = 1;
const maxFile = 256 * 1024 * 1024;

/** What is listed of a guest as long as its directory has this stamp. */
export interface Listed {
  readonly stamp: string;
  readonly infos: readonly ArchiveInfo[];
}

type Entry = [vmid: number, stamp: string, infos: ArchiveInfo[]];

/**
 * Keeps lists of archives on the node's disk: PVE's programs start a host each, and the next one need not read
 * all archives again. Its first line proves the rest, so that what a crash or another host left is dropped.
 */
export class ArchiveCacheFile {
  readonly #path: string;
  /** Of what, so that another path or version begins anew. */
  readonly #subject: string;

  constructor(cacheDir: string, storePath: string) {
    this.#path = join(cacheDir, 'archives');
    this.#subject = JSON.stringify([format, storePath]);
  }

  /** By guest. Empty if there is no file of use. */
  async read(): Promise<Map<number, Listed>> {
    const text = await readBounded(this.#path, maxFile).catch(() => Buffer.of());
    const end = text.indexOf('\n');
    const entries = text.subarray(end + 1);
    if (end < 0 || text.toString('latin1', 0, end) !== this.#proof(entries)) return new Map();
    const revive = ({ startTime, ...info }: ArchiveInfo): ArchiveInfo => ({
      ...info,
      startTime: new Date(startTime),
    });
    const parsed = JSON.parse(entries.toString()) as Entry[];
    return new Map(
      parsed.map(([vmid, stamp, infos]) => [vmid, { stamp, infos: infos.map(revive) }]),
    );
  }

  async write(guests: ReadonlyMap<number, Listed>): Promise<void> {
    const entries: Entry[] = [...guests].map(([vmid, { stamp, infos }]) => [
      vmid,
      stamp,
      [...infos],
    ]);
    const text = Buffer.from(JSON.stringify(entries));
    const draft = `${this.#path}.new`;
    await writeFile(draft, [`${this.#proof(text)}\n`, text], { mode: 0o600 });
    await rename(draft, this.#path);
  }

  #proof(entries: Buffer): string {
    return sha256(Buffer.concat([Buffer.from(this.#subject), entries]));
  }
}
