import { existsSync } from 'node:fs';
import { Socket } from 'node:net';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { type Method, methods } from '../protocol/methods.ts';
import type { LogLevel } from '../protocol/model.ts';
import directoryProvider from '../providers/directory/index.ts';
import { Channel } from '../rpc/channel.ts';
import { defineProvider, type ProviderDefinition } from '../sdk/define.ts';
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

/** Serves the calls that come over file descriptor 0 until the lifecycle ends the process. */
export async function serve(options: {
  root: string;
  directory: string;
  type: string;
}): Promise<void> {
  const definition = await loadProvider(options.directory, options.type);
  const lifecycle = new Lifecycle(noteOnStderr);
  const channel = new Channel(new Socket({ fd: 0, readable: true, writable: true }), (reason) =>
    lifecycle.end(reason.message),
  );
  const notify = (level: LogLevel, message: string) => {
    const dropped = channel.takeDropped();
    if (dropped > 0) channel.notify('log', { level, message: `${dropped} log lines were dropped` });
    channel.notify('log', { level, message });
  };
  const session = new Session({ root: options.root, definition, lifecycle, notify });
  lifecycle.onEnd((reason) => session.close(reason));
  for (const method of Object.keys(methods) as Method[]) {
    channel.serve(method, (params) => lifecycle.during(() => session.call(method, params)));
  }
}
