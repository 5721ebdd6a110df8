import { BackupError, cancelled, errorCode, isBackupError, messageOf } from '../protocol/errors.ts';
import { type Handlers, type Method, methods, type Params } from '../protocol/methods.ts';
import type { LogLevel } from '../protocol/model.ts';
import type { ProviderDefinition } from '../sdk/define.ts';
import type { Logger, Provider, Storage } from '../sdk/provider.ts';
import { ReleaseStack } from '../toolbox/release.ts';
import type { AskShim } from './ask-shim.ts';
import { BackupJob } from './backup.ts';
import type { Lifecycle, Owner } from './lifecycle.ts';
import { createLogger, openLogFile } from './log.ts';
import { makeDirectories, parseOptions, readCluster, readSecrets } from './open-storage.ts';
import { nodePaths } from './paths.ts';
import { Restores } from './restore.ts';
import { storageHandlers } from './storage.ts';

const graceMs = 3_000;

/** What every method works on, once `open` has come. */
export interface Context {
  readonly root: string;
  readonly storeid: string;
  readonly title: string;
  readonly provider: Provider;
  /** Where images are served as files; of all storages of the node. */
  readonly mounts: string;
  /** On disk; what lies there may be lost at any time. */
  readonly scratch: string;
  readonly log: Logger;
  readonly lifecycle: Lifecycle;
  /** The PVE process that this host belongs to. */
  readonly owner: Owner;
  readonly askShim: AskShim;
}

type OwnMethod = 'open' | 'ping' | 'cancel' | 'shutdown';
type ProviderHandlers = Omit<Handlers, OwnMethod>;

interface SessionOptions {
  readonly root: string;
  readonly definition: ProviderDefinition;
  readonly lifecycle: Lifecycle;
  readonly notify: (level: LogLevel, message: string) => void;
  readonly askShim: AskShim;
}

/** Serves one storage: checks every message once, on its way in and out, and hands it to its method. */
export class Session {
  readonly #options: SessionOptions;
  readonly #running = new Map<AbortController, Promise<unknown>>();
  readonly #stack = new ReleaseStack();
  readonly #own: Pick<Handlers, OwnMethod>;
  #context: Context | undefined;
  #handlers: ProviderHandlers | undefined;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#own = {
      open: (params) => this.#open(params),
      ping: async () => ({}),
      cancel: async () => {
        this.#abortAll('cancelled');
        return {};
      },
      shutdown: async () => {
        setImmediate(() => options.lifecycle.end('shutdown'));
        return {};
      },
    };
  }

  /** Answers one request; rejects with a `BackupError` in any case. */
  async call(method: Method, params: unknown): Promise<unknown> {
    const schemas = methods[method];
    const parsed = schemas.params.safeParse(params);
    if (!parsed.success)
      throw invalid(`${method}: ${parsed.error.issues.map(issueText).join('; ')}`);
    const controller = new AbortController();
    const { signal } = controller;
    try {
      const work = unlessAborted(this.#handler(method)(parsed.data, signal), signal);
      if (!(method in this.#own)) this.#running.set(controller, work);
      return schemas.result.parse(await work);
    } catch (error) {
      throw this.#explain(method, error, signal);
    } finally {
      this.#running.delete(controller);
    }
  }

  /** Aborts what runs and releases what is held, in reverse order; bounded by the lifecycle. */
  async close(reason: string): Promise<void> {
    this.#abortAll(reason);
    await Promise.allSettled(this.#running.values());
    await this.#stack.release();
  }

  /** The schemas have been checked by `call`, so the parameters fit the method. */
  #handler(method: Method): (params: unknown, signal: AbortSignal) => Promise<unknown> {
    const handler =
      method in this.#own
        ? this.#own[method as OwnMethod]
        : this.#handlers?.[method as keyof ProviderHandlers];
    if (handler === undefined) throw invalid(`${method} came before open`);
    return handler as (params: unknown, signal: AbortSignal) => Promise<unknown>;
  }

  async #open(params: Params<'open'>): Promise<Record<string, never>> {
    if (this.#context !== undefined) throw invalid('open came twice');
    const { root, definition, lifecycle, notify, askShim } = this.#options;
    const { storeid, scfg } = params;
    const owner = { pid: params.owner.pid, startTime: params.owner['start-time'] };
    lifecycle.watch(owner);
    const paths = nodePaths(root, storeid);
    const options = parseOptions(definition, scfg);
    const secrets = await readSecrets(definition, paths);
    const secretValues = Object.values(secrets).filter((value) => value !== '');
    const log = createLogger(openLogFile(paths.logFile, secretValues), notify, secretValues);
    await makeDirectories(paths);
    const storage: Storage = {
      id: storeid,
      options,
      secrets,
      cluster: await readCluster(paths),
      log,
      runDir: paths.runDir,
      cacheDir: paths.cacheDir,
      signal: lifecycle.signal,
    };
    const provider = definition.open(storage);
    const { title } = definition;
    const { mounts, cacheDir: scratch } = paths;
    const shared = { root, storeid, title, provider, mounts, scratch, log, lifecycle };
    const context = { ...shared, owner, askShim };
    const job = new BackupJob(context);
    const restores = new Restores(context);
    this.#stack.add('provider', async () => provider.close?.());
    this.#stack.add('restores', () => restores.close());
    this.#stack.add('job', () => job.close());
    this.#context = context;
    this.#handlers = { ...storageHandlers(context), ...job.handlers(), ...restores.handlers() };
    log.debug('opened', { storeid, owner, node: process.version });
    return {};
  }

  #abortAll(reason: string): void {
    for (const controller of this.#running.keys()) controller.abort(cancelled(reason));
  }

  #explain(method: Method, error: unknown, signal: AbortSignal): BackupError {
    const text = messageOf(error);
    const debug = { stack: error instanceof Error ? error.stack : undefined };
    this.#context?.log.debug(`${method} failed: ${text}`, debug);
    if (signal.aborted) return cancelled(messageOf(signal.reason));
    if (isBackupError(error)) return error;
    const { type } = this.#options.definition;
    return new BackupError(`a fault of the provider '${type}' in ${method}: ${text}`, {
      cause: error,
      code: errorCode.provider,
    });
  }
}

/** Gives aborted work some time to end in order, then leaves it: the shim waits 4 s [A3]. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    work.then(resolve, reject);
    signal.addEventListener('abort', () => setTimeout(reject, graceMs, signal.reason).unref());
  });
}

const invalid = (message: string) => new BackupError(message, { code: errorCode.invalid });

const issueText = (issue: { path: PropertyKey[]; message: string }) =>
  `${issue.path.map(String).join('.') || 'parameters'}: ${issue.message}`;
