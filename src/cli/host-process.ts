import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, open } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Duplex } from 'node:stream';
import { fileURLToPath } from 'node:url';
import * as z from 'zod';
import { BackupError } from '../protocol/errors.ts';
import { type Method, methods, notifications, type Params } from '../protocol/methods.ts';
import type { LogLevel } from '../protocol/model.ts';
import { protocolVersion } from '../protocol/version.ts';
import { Channel } from '../rpc/channel.ts';
import { processStartTimeSync } from '../toolbox/processes.ts';
import type { StorageSection } from './storage-config.ts';

/** Where the bundle lies, beside the host's and the providers. */
const installed = dirname(fileURLToPath(import.meta.url));
/** The host wants sockets as 0, 1 and 3, and Node gives a child only one-way ends below 3. */
const renumber = 'exec "$0" "$@" 0<&3 1>&3 3<&4 4<&-';

const helloParams = z.object({ protocol: z.literal(protocolVersion) });

export interface HostOptions {
  readonly root: string;
  readonly storeid: string;
  readonly section: StorageSection;
  readonly onLog: (level: LogLevel, message: string) => void;
}

/** A host of this process's own, for one storage. */
export class HostProcess {
  readonly #child: ChildProcess;
  readonly #exited: Promise<unknown>;
  readonly #channel: Channel;
  readonly #logFile: string;
  #hasEnded = false;

  private constructor(child: ChildProcess, logFile: string, onLog: HostOptions['onLog']) {
    this.#child = child;
    this.#exited = once(child, 'exit');
    this.#logFile = logFile;
    this.#channel = new Channel(child.stdio[3] as Duplex, () => {
      this.#hasEnded = true;
    });
    this.#channel.serve('hello', async (params) => {
      // Another version, from before an upgrade or after it.
      if (!helloParams.safeParse(params).success) this.#channel.close(new Error('wrong protocol'));
    });
    this.#channel.serve('log', async (params) => {
      const { level, message } = notifications.log.parse(params);
      onLog(level, message);
    });
  }

  /** Starts a host and opens the storage in it. */
  static async open({ root, storeid, section, onLog }: HostOptions): Promise<HostProcess> {
    const provider = join(installed, 'providers', section.type);
    if (!existsSync(join(provider, 'provider.json'))) {
      throw new BackupError(
        `storage '${storeid}' is of type '${section.type}', which is none of pve-backup-bridge`,
      );
    }
    const logFile = join(root, '/var/log/pve-backup-bridge', `${storeid}.log`);
    await mkdir(dirname(logFile), { recursive: true, mode: 0o700 });
    const log = await open(logFile, 'a', 0o600);
    try {
      const host = [process.execPath, join(installed, 'host.mjs'), '--root', root, provider];
      const child = spawn('/bin/sh', ['-c', renumber, ...host], {
        stdio: ['ignore', 'ignore', log.fd, 'pipe', 'pipe'],
        cwd: '/',
        env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LANG: 'C.UTF-8' },
      });
      const opened = new HostProcess(child, logFile, onLog);
      const owner = { pid: process.pid, 'start-time': processStartTimeSync(process.pid) ?? 0 };
      await opened.call('open', { storeid, scfg: section.properties, owner });
      return opened;
    } finally {
      await log.close();
    }
  }

  async call<M extends Method>(
    method: M,
    params: Params<M>,
  ): Promise<z.output<(typeof methods)[M]['result']>> {
    const answer = await this.#channel.request(method, params).catch((error: Error) => {
      const ended = `the backup host has ended: see ${this.#logFile}`;
      throw new BackupError(this.#hasEnded ? ended : error.message, { cause: error });
    });
    return methods[method].result.parse(answer) as z.output<(typeof methods)[M]['result']>;
  }

  /** Aborts what runs. */
  async cancel(): Promise<void> {
    await this.call('cancel', {});
  }

  /** Lets it release what it holds; resolves when it is gone. */
  async close(): Promise<void> {
    this.#channel.close(new Error('done'));
    for (const end of this.#child.stdio) end?.destroy();
    await this.#exited;
  }
}
