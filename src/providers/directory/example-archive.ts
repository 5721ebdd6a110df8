import { lstat, readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { BackupError, messageOf } from '../../protocol/errors.ts';
import type {
  Archive,
  ArchiveInfo,
  ContainerRestore,
  RawImage,
  VmRestore,
  VolumeSizes,
} from '../../sdk/provider.ts';
import { StoredArchive } from './archive.ts';
import { describeArchive } from './archive-info.ts';
import { hasMember } from './archive-members.ts';
import { regularMember } from './container-file.ts';
import { archiveNames } from './directories.ts';
import { storeError } from './files.ts';
import { member, type ParsedName } from './layout.ts';
import { openNbdImage } from './nbd-image.ts';
import { backingOf, encodeChain, followChain, type ImageChain, imagePath } from './qcow2-chain.ts';
import { mountSquashfs } from './squashfs-mount.ts';
import type { Store } from './store.ts';

const image = /^([a-zA-Z][a-zA-Z0-9_-]{0,63})\.qcow2$/;

/** The devices of an archive of the example, by its files. */
async function devicesOf(directory: string): Promise<string[]> {
  return (await readdir(directory)).flatMap((file) => image.exec(file)?.[1] ?? []);
}

class ExampleRestore implements VmRestore {
  readonly volumes: VolumeSizes;
  readonly #chains: ReadonlyMap<string, ImageChain>;
  readonly #store: Store;
  readonly #images: RawImage[] = [];

  constructor(store: Store, chains: ReadonlyMap<string, ImageChain>) {
    this.#store = store;
    this.#chains = chains;
    this.volumes = new Map([...chains].map(([device, { size }]) => [device, size]));
  }

  async openVolume(device: string): Promise<RawImage> {
    const chain = this.#chains.get(device);
    if (chain === undefined) throw new BackupError(`the archive has no device ${device}`);
    const { runDir, signal } = this.#store;
    const opened = await openNbdImage(encodeChain(chain.paths), chain.size, runDir, signal);
    this.#images.push(opened);
    return opened;
  }

  async close(): Promise<void> {
    await Promise.all(this.#images.splice(0).map((opened) => opened.close()));
  }
}

/**
 * An archive that Proxmox's own directory example wrote: a qcow2 image per disk, incremental ones on top of
 * others; of a container a tar or a squashfs image.
 */
class ExampleArchive extends StoredArchive {
  protected async openVm(): Promise<VmRestore> {
    const { layout } = this.store;
    const { name, vmid } = this.info;
    const chains = new Map<string, ImageChain>();
    for (const device of await devicesOf(layout.archive(name))) {
      const place = { vmid, entry: basename(name), device };
      const chain = await followChain(layout, place).catch((error: unknown) => {
        throw storeError(layout.path, `archive ${name} cannot be restored`, error);
      });
      chains.set(device, chain);
    }
    return new ExampleRestore(this.store, chains);
  }

  protected async openContainer(signal: AbortSignal): Promise<ContainerRestore> {
    const { layout, runDir } = this.store;
    const { name } = this.info;
    if (this.containerMechanism === 'tar') {
      return { path: await regularMember(layout, name, member.tar), close: async () => {} };
    }
    const image = await regularMember(layout, name, member.squashfs);
    return mountSquashfs(image, runDir, signal).catch((error: unknown) => {
      if (signal.aborted) throw error;
      const text = `archive ${name} cannot be restored: ${messageOf(error)}`;
      throw new BackupError(text, { cause: error });
    });
  }

  /** Images that build on this archive's would be lost with it. */
  protected async assertRemovable(): Promise<void> {
    const { layout, log } = this.store;
    const { name, vmid } = this.info;
    for await (const other of archiveNames(layout, vmid)) {
      if (other === name) continue;
      for (const device of await devicesOf(layout.archive(other))) {
        const place = { vmid, entry: basename(other), device };
        const { backing } = await backingOf(layout, place).catch((error: unknown) => {
          log.debug(`${imagePath(layout, place)}: ${messageOf(error)}`);
          return { backing: undefined };
        });
        if (backing?.entry !== basename(name)) continue;
        throw new BackupError(
          `archive ${name} cannot be removed: the incremental archive ${other} builds on it; remove that first`,
        );
      }
    }
  }
}

export async function openExampleArchive(
  store: Store,
  name: string,
  parsed: ParsedName,
): Promise<Archive> {
  const isImage =
    (await hasMember(store.layout, name, member.squashfs)) &&
    !(await hasMember(store.layout, name, member.tar));
  const info = await describe(store, name, parsed);
  return new ExampleArchive(store, info, isImage ? 'directory' : 'tar');
}

async function describe(store: Store, name: string, parsed: ParsedName): Promise<ArchiveInfo> {
  const directory = store.layout.archive(name);
  await lstat(join(directory, member.guestConfig));
  const files = await Promise.all(
    (await readdir(directory)).map((file) => lstat(join(directory, file))),
  );
  const size = files.reduce((sum, stats) => sum + (stats.isFile() ? stats.size : 0), 0);
  return describeArchive(store.layout, name, parsed, size);
}
