import { hostname } from 'node:os';
import { processStartTimeSync } from './processes.ts';

const hex = (value: number) => value.toString(16).toUpperCase().padStart(8, '0');

/**
 * A task id for work of this process that begins now, in the shape of PVE's own: its web interface takes them
 * apart, and shows no list at all where one cannot be.
 */
export function makeUpid(type: string, id = '', now = new Date()): string {
  const [node = 'localhost'] = hostname().split('.');
  const started = hex((processStartTimeSync(process.pid) ?? 0) % 2 ** 32);
  const time = hex(Math.floor(now.getTime() / 1000));
  return `UPID:${node}:${hex(process.pid)}:${started}:${time}:${type}:${id}:root@pam:`;
}
