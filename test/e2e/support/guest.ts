import type { DiskSpec } from '../../../fixtures/qemu/virtual-machine.ts';

/** A guest config that has these disks. */
export function guestConfig(vmid: number, disks: readonly DiskSpec[]): string {
  const lines = disks.map(({ device, size }, index) => {
    const volume = `local:${vmid}/vm-${vmid}-disk-${index}.raw`;
    return `${device.replace(/^drive-/, '')}: ${volume},size=${size / 1024}K\n`;
  });
  return `boot: order=scsi0\ncores: 1\nmemory: 32\nname: guest${vmid}\n${lines.join('')}`;
}

/** The volids that a task log of vzdump names, in its order. */
export function archivesIn(log: string, storage: string): string[] {
  return Array.from(
    log.matchAll(/creating .* archive '([^']+)'/g),
    ([, name]) => `${storage}:backup/${name}`,
  );
}
