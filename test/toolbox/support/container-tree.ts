import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import type { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { onTestFinished } from 'vitest';
import type { ContainerTree, TarOptions } from '../../../src/sdk/provider.ts';
import {
  type ContainerTreeOptions,
  openContainerTree,
} from '../../../src/toolbox/container-tree.ts';
import { ContainerCaller } from './container-caller.ts';
import { LogLines } from './log.ts';

/** A container that is gone after the test; not yet started. */
export function container(options?: { privileged?: boolean }): ContainerCaller {
  const caller = new ContainerCaller(options);
  onTestFinished(() => caller.remove());
  return caller;
}

export async function openTree(
  caller: ContainerCaller,
  options: Partial<ContainerTreeOptions> = {},
): Promise<ContainerTree & { close(): Promise<void>; log: LogLines }> {
  const log = new LogLines();
  const tree = await openContainerTree({
    caller: caller.identity,
    directory: caller.directory,
    sources: ['./'],
    userId: caller.userId,
    log,
    signal: new AbortController().signal,
    ...options,
  });
  onTestFinished(() => tree.close());
  return Object.assign(tree, { log });
}

/** The whole tar, after tar has ended well. */
export async function readTar(tree: ContainerTree, options?: TarOptions) {
  const { stream, done } = await tree.tar(options);
  const data = await buffer(stream);
  return { data, totals: await done };
}

/** The lines of `tar -tv`, with names escaped. */
export function listTar(tar: Buffer): string[] {
  const options = { input: tar, env: { ...process.env, LC_ALL: 'C.UTF-8' }, maxBuffer: 1e9 };
  return execFileSync('tar', ['-tvf', '-', '--numeric-owner', '--full-time'], options)
    .toString()
    .trimEnd()
    .split('\n');
}

/** Names only, sorted. */
export function namesOf(tar: Buffer): string[] {
  const options = { input: tar, env: { ...process.env, LC_ALL: 'C.UTF-8' }, maxBuffer: 1e9 };
  return execFileSync('tar', ['-tf', '-'], options).toString().trimEnd().split('\n').sort();
}

/** But for those of trees that are too small to be containers. */
export function warningsOf({ lines }: LogLines): string[] {
  return lines.filter((line) => line.startsWith('warn') && !line.includes('PVE will refuse'));
}

/** The content of one member. */
export function memberOf(tar: Buffer, name: string): Buffer {
  return execFileSync('tar', ['-xOf', '-', name], { input: tar, maxBuffer: 1e9 });
}

/** The first bytes, at least so many; then whoever writes has to wait. */
export async function firstBytes(stream: Readable, length: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for (let bytes = 0; bytes < length; ) {
    // Asking for more than there is would only make the stream say again what it has.
    const chunk: Buffer | null = stream.read();
    if (chunk === null) await once(stream, 'readable');
    else {
      chunks.push(chunk);
      bytes += chunk.length;
    }
  }
  return Buffer.concat(chunks);
}

/** What runs in the mount namespace of the caller, beside itself. */
export function processesIn(caller: ContainerCaller): { pid: number; name: string }[] {
  const namespaceOf = (pid: number) => readlinkSync(`/proc/${pid}/ns/mnt`);
  const own = namespaceOf(caller.identity.pid);
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== caller.identity.pid)
    .flatMap((name) => {
      try {
        if (namespaceOf(Number(name)) !== own) return [];
        return [{ pid: Number(name), name: readFileSync(`/proc/${name}/comm`, 'utf8').trim() }];
      } catch {
        return [];
      }
    });
}
