import { randomUUID } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { encodeRecord } from '../../../src/providers/directory/archive-record.ts';
import {
  archiveNameOf,
  chunkSize,
  layoutOf,
  member,
} from '../../../src/providers/directory/layout.ts';

const day = 24 * 3600 * 1000;
const newest = Date.UTC(2026, 10, 1);

/**
 * Fills a store with archives of VMs that only a list can use: one a day of each guest. With notes, as PVE writes
 * them after every backup. Returns their names.
 */
export function makeArchives(path: string, guests: number, each: number, first = 100): string[] {
  const layout = layoutOf(path);
  const index = '0'.repeat(64);
  const names: string[] = [];
  for (let vmid = first; vmid < first + guests; vmid++) {
    mkdirSync(layout.guest(vmid));
    for (let age = 0; age < each; age++) {
      const startTime = new Date(newest - age * day);
      const name = archiveNameOf({ vmid, vmtype: 'qemu', startTime });
      const directory = layout.archive(name);
      mkdirSync(directory);
      const record = encodeRecord({
        format: 1,
        archiveId: randomUUID(),
        vmid,
        vmtype: 'qemu',
        startTime: startTime.toISOString(),
        tool: 'test',
        chunkSize,
        volumes: { 'drive-scsi0': { size: 32 * 2 ** 30, index } },
        files: { [member.guestConfig]: index },
        storedBytes: 1000 + age,
      });
      writeFileSync(`${directory}/${member.index('drive-scsi0')}`, '');
      writeFileSync(`${directory}/${member.guestConfig}`, `name: guest-${vmid}\n`);
      writeFileSync(`${directory}/${member.notes}`, `guest-${vmid}, node pve1, a day's backup`);
      writeFileSync(`${directory}/${member.record}`, record);
      names.push(name);
    }
  }
  return names;
}
