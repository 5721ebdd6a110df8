import { existsSync } from 'node:fs';
import { Socket } from 'node:net';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { type Method, methods } from '../protocol/methods.ts';
import type { LogLevel } from '../protocol/model.ts';
import directoryProvider from '../providers/directory/index.ts';
import { Channel } from '../rpc/channel.ts';
import { defineProvider, type ProviderDefinition } from '../sdk/define.ts';
import { askShimOver } from './ask-shim.ts';
import { Lifecycle } from './lifecycle.ts';
import { Session } from './session.ts';

const builtin: ReadonlyMap<string, ProviderDefinition> = new Map([
  [directoryProvider.type, directoryProvider],
]);

/** Our own providers are part of the bundle; a vendor's is the module beside its provider.json. */
async function loadProvider(directory: string, type: string): Promise<ProviderDefinition> {
  const module = join(directory, 'provider.mjs');
  if (!existsSync(module)) {
    const definition = builtin.get(type);
    if (definition !== undefined) return definition;
  }
  const exported: { default?: ProviderDefinition } = await import(pathToFileURL(module).href);
  if (exported.default === undefined) throw new Error(`${module} has no default export`);
  return defineProvider(exported.default);
}

/** stderr is the storage's log file, also before `open` has opened it: a line as the log has them. */
function noteOnStderr(message: string): void {
  const line = { level: 30, time: new Date().toISOString(), pid: process.pid, msg: message };
  process.stderr.write(`${JSON.stringify(line)}\n`);
}

const socketOf = (fd: number) => new Socket({ fd, readable: true, writable: true });

/** What the forked child of `backup_container` may ask for. */
const childMethods: readonly Method[] = ['backup_container', 'cancel', 'ping'];

/**
 * Serves the calls that come over file descriptor 0, and over 3 those of children that run `backup_container`,
 * until the lifecycle ends the process.
 */
export async function serve(options: {
  root: string;
  directory: string;
  type: string;
}): Promise<void> {
  const definition = await loadProvider(options.directory, options.type);
  const lifecycle = new Lifecycle(noteOnStderr);
  const end = (reason: Error) => lifecycle.end(reason.message);
  const owner = new Channel(socketOf(0), end);
  // A child may be killed in mid-line, and the next one begins where it stopped.
  const child = new Channel(socketOf(3), end, { dropsGarbage: true });
  const calls = { owner: 0, child: 0 };
  const notify = (level: LogLevel, message: string) => {
    // While its child calls, the owner waits and reads nothing [A8]; a killed child's call may last longer.
    const channel = calls.child > 0 && calls.owner === 0 ? child : owner;
    const dropped = channel.takeDropped();
    if (dropped > 0) channel.notify('log', { level, message: `${dropped} log lines were dropped` });
    channel.notify('log', { level, message });
  };
  const askShim = askShimOver((method, params) => owner.request(method, params));
  const session = new Session({ root: options.root, definition, lifecycle, notify, askShim });
  lifecycle.onEnd((reason) => session.close(reason));
  const serveOn = (from: keyof typeof calls, channel: Channel, served: readonly Method[]) => {
    for (const method of served) {
      channel.serve(method, async (params) => {
        calls[from]++;
        try {
          return await lifecycle.during(() => session.call(method, params));
        } finally {
          calls[from]--;
        }
      });
    }
  };
  serveOn('owner', owner, Object.keys(methods) as Method[]);
  serveOn('child', child, childMethods);
}
