import { allocationFlag } from './constants.ts';
import type { StatusExtent } from './reply-message.ts';
import type { NbdImage } from './server.ts';

/** Block status of an image's range by base:allocation, neighbours of one kind joined; at most `most` extents. */
export async function statusOf(
  image: NbdImage,
  offset: number,
  length: number,
  most: number,
): Promise<StatusExtent[]> {
  const found = (await image.extents?.(offset, length)) ?? [];
  const result: { length: number; flags: number }[] = [];
  const end = offset + length;
  let at = offset;
  for (const extent of found) {
    if (extent.offset > at) throw new Error(`the image has a gap in its extents at ${at}`);
    const stop = Math.min(extent.offset + extent.length, end);
    if (stop <= at) continue;
    const flags = extent.zero ? allocationFlag.hole | allocationFlag.zero : 0;
    const last = result[result.length - 1];
    if (last?.flags === flags) last.length += stop - at;
    else if (result.length < most) result.push({ length: stop - at, flags });
    else return result;
    at = stop;
  }
  if (at === offset) throw new Error(`the image has no extents at ${offset}`);
  return result;
}
