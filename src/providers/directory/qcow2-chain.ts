import { lstat } from 'node:fs/promises';
import { join } from 'node:path';
import { BackupError } from '../../protocol/errors.ts';
import type { Layout } from './layout.ts';
import { readQcow2Header } from './qcow2-header.ts';

/** More than anybody keeps, and what QEMU opens without trouble. */
const maxLinks = 200;
/** As Proxmox's directory example writes it; nothing else can leave the guest's directory. */
const backingName = /^\.\.\/(qemu-\d{1,11})\/([a-zA-Z][a-zA-Z0-9_-]{0,63})\.qcow2$/;

/** A disk image of the example: `VMID/ENTRY/DEVICE.qcow2`. */
export interface ImagePlace {
  readonly vmid: number;
  /** `qemu-SECONDS` */
  readonly entry: string;
  readonly device: string;
}

/** An image and those below it, newest first. */
export interface ImageChain {
  readonly size: number;
  readonly paths: readonly string[];
}

export const imagePath = (layout: Layout, { vmid, entry, device }: ImagePlace): string =>
  join(layout.guest(vmid), entry, `${device}.qcow2`);

/** The image that this one builds on; rejects names that lead anywhere but to another backup of the guest. */
export async function backingOf(
  layout: Layout,
  place: ImagePlace,
): Promise<{ size: number; backing: ImagePlace | undefined }> {
  const path = imagePath(layout, place);
  if (!(await lstat(join(layout.guest(place.vmid), place.entry))).isDirectory()) {
    throw new BackupError(`${place.vmid}/${place.entry} is not a directory`);
  }
  const { size, backingFile, backingFormat } = await readQcow2Header(path);
  if (backingFile === undefined) return { size, backing: undefined };
  const [, entry, device] = backingName.exec(backingFile) ?? [];
  if (entry === undefined || device === undefined) {
    throw new BackupError(
      `${path} builds on '${backingFile}', which is no other backup of the guest`,
    );
  }
  if (backingFormat !== undefined && backingFormat !== 'qcow2') {
    throw new BackupError(`${path} builds on an image of format '${backingFormat}', not qcow2`);
  }
  return { size, backing: { vmid: place.vmid, entry, device } };
}

/** Follows an image down to the full backup and checks every link. */
export async function followChain(layout: Layout, top: ImagePlace): Promise<ImageChain> {
  const paths: string[] = [];
  let topSize: number | undefined;
  for (let place: ImagePlace | undefined = top; place !== undefined; ) {
    const path = imagePath(layout, place);
    if (paths.includes(path)) throw new BackupError(`${path} builds on itself`);
    if (paths.length >= maxLinks) {
      throw new BackupError(
        `${paths[0]} builds on more than ${maxLinks} others: use qemu-img rebase`,
      );
    }
    paths.push(path);
    const { size, backing }: Awaited<ReturnType<typeof backingOf>> = await backingOf(layout, place);
    topSize ??= size;
    place = backing;
  }
  return { size: topSize ?? 0, paths };
}

/**
 * The chain as QEMU's block layer takes it. It names every file, so that what the headers say now is not
 * asked again.
 */
export function encodeChain(paths: readonly string[]): string {
  const node = paths.reduceRight<object | null>(
    (backing, filename) => ({ driver: 'qcow2', file: { driver: 'file', filename }, backing }),
    null,
  );
  return `json:${JSON.stringify(node)}`;
}
