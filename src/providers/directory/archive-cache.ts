import { constants } from 'node:fs';
import { stat } from 'node:fs/promises';
import { isBackupError, messageOf } from '../../protocol/errors.ts';
import type { ArchiveInfo } from '../../sdk/provider.ts';
import { ArchiveCacheFile, type Listed } from './archive-cache-file.ts';
import { readArchive } from './archive-info.ts';
import { openArchive } from './archives.ts';
import { archiveNames, guestsIn } from './directories.ts';
import { codeOf, ifMissing, withFile } from './files.ts';
import { parseArchiveName } from './layout.ts';
import { forEachParallel } from './parallel.ts';
import type { Store } from './store.ts';

/** Times of a directory are coarse, on some file systems two seconds: what is younger may yet change unseen. */
const settledMs = 2000;
/** For so long files are read one after the other without a look at anything else. */
const sliceMs = 10;
const width = 8;
/** So many archives are read anew by each host rather than kept on disk. */
const fewArchives = 500;
/** About what all that is kept may take. */
const maxBytes = 64 * 1024 * 1024;
const bytesOf = ({ notes }: ArchiveInfo) => 500 + 2 * (notes?.length ?? 0);

interface Stamp {
  /** Another one means that something has changed in the directory. */
  readonly text: string;
  /** Milliseconds since 1970. */
  readonly changed: number;
}

/** Undefined if there is no such directory. */
async function stampOf(path: string): Promise<Stamp | undefined> {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
  try {
    // Opened, not only looked at: then NFS asks the server, however fresh it takes its own copy for.
    const { ino, mtimeMs, ctimeMs } = await withFile(path, flags, (file) => file.stat());
    return { text: `${ino} ${mtimeMs} ${ctimeMs}`, changed: Math.max(mtimeMs, ctimeMs) };
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'ELOOP'].includes(codeOf(error) ?? '')) return undefined;
    throw error;
  }
}

/**
 * What is listed of each guest's archives, as long as the guest's directory stays the same: whoever adds, removes
 * or changes an archive changes its times, see `touchGuest`.
 */
export class ArchiveCache {
  readonly #store: Store;
  readonly #file: ArchiveCacheFile;
  readonly #guests = new Map<number, Listed & { readonly bytes: number }>();
  #loaded: Promise<void> | undefined;
  #bytes = 0;
  /** Archives that the file lacks. */
  #unsaved = 0;

  constructor(store: Store, cacheDir: string) {
    this.#store = store;
    this.#file = new ArchiveCacheFile(cacheDir, store.layout.path);
  }

  /** All archives that can be read; a damaged one must not hide the others. */
  async list(vmid?: number): Promise<ArchiveInfo[]> {
    this.#loaded ??= this.#load();
    await this.#loaded;
    const vmids = vmid === undefined ? await guestsIn(this.#store.layout) : [vmid];
    if (vmid === undefined) this.#keepOnly(new Set(vmids));
    const found = new Map<number, readonly ArchiveInfo[]>();
    await forEachParallel(vmids, width, async (guest) => {
      found.set(guest, await this.#listGuest(guest));
    });
    if (this.#unsaved > fewArchives) this.#save();
    return vmids.flatMap((guest) => found.get(guest) ?? []);
  }

  async #load(): Promise<void> {
    for (const [vmid, { stamp, infos }] of await this.#file.read()) this.#keep(vmid, stamp, infos);
    this.#unsaved = 0;
  }

  #save(): void {
    this.#unsaved = 0;
    this.#file.write(this.#guests).catch((error: unknown) => {
      this.#store.log.debug(`the list of archives is not kept: ${messageOf(error)}`);
    });
  }

  async #listGuest(vmid: number): Promise<readonly ArchiveInfo[]> {
    const now = Date.now();
    const stamp = await stampOf(this.#store.layout.guest(vmid));
    const known = this.#guests.get(vmid);
    if (known !== undefined && known.stamp === stamp?.text) return known.infos;
    this.#forget(vmid);
    if (stamp === undefined) return [];
    const { infos, lasting } = await this.#read(vmid);
    if (lasting && stamp.changed + settledMs < now) this.#keep(vmid, stamp.text, infos);
    return infos;
  }

  /** `lasting` if all are ours: about others the guest's directory tells too little. */
  async #read(vmid: number): Promise<{ infos: ArchiveInfo[]; lasting: boolean }> {
    const { layout, log } = this.#store;
    const infos: ArchiveInfo[] = [];
    let lasting = true;
    let since = Number.NEGATIVE_INFINITY;
    for await (const name of archiveNames(layout, vmid)) {
      if (performance.now() - since > sliceMs) {
        // Where the store hangs, this waits, and the host goes on.
        await stat(layout.guest(vmid)).catch(ifMissing);
        since = performance.now();
      }
      const parsed = parseArchiveName(name);
      try {
        if (parsed?.origin === 'bridge') {
          const { info, record } = readArchive(layout, name, parsed);
          infos.push(info);
          // It may be the store's fault, which passes.
          if (isBackupError(record)) lasting = false;
        } else {
          infos.push((await openArchive(this.#store, name)).info);
          lasting = false;
        }
      } catch (error) {
        log.debug(`archive ${name} is not listed: ${messageOf(error)}`);
        lasting = false;
      }
    }
    return { infos, lasting };
  }

  #keep(vmid: number, stamp: string, infos: readonly ArchiveInfo[]): void {
    const bytes = infos.reduce((sum, info) => sum + bytesOf(info), 0);
    this.#forget(vmid);
    if (this.#bytes + bytes > maxBytes) return;
    this.#guests.set(vmid, { stamp, infos, bytes });
    this.#bytes += bytes;
    this.#unsaved += infos.length;
  }

  #forget(vmid: number): void {
    this.#bytes -= this.#guests.get(vmid)?.bytes ?? 0;
    this.#guests.delete(vmid);
  }

  #keepOnly(vmids: ReadonlySet<number>): void {
    for (const vmid of this.#guests.keys()) {
      if (!vmids.has(vmid)) this.#forget(vmid);
    }
  }
}
