import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { destination, type Logger as Pino, pino } from 'pino';
import { oneLine } from '../protocol/errors.ts';
import type { LogLevel } from '../protocol/model.ts';
import type { Logger } from '../sdk/provider.ts';

/** Opens the log file of a storage: one JSON object a line, written at once, so that a crash loses nothing. */
export function openLogFile(path: string, secrets: readonly string[]): Pino {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  return pino(
    {
      base: { pid: process.pid },
      level: 'debug',
      timestamp: pino.stdTimeFunctions.isoTime,
      hooks: {
        streamWrite: (line) =>
          secrets.reduce((text, secret) => text.replaceAll(secret, '[secret]'), line),
      },
    },
    destination({ dest: path, append: true, sync: true, mode: 0o600 }),
  );
}

/** A provider's logger: into the log file, and what is for the administrator to the task log too. */
export function createLogger(
  file: Pino,
  notify: (level: LogLevel, message: string) => void,
  secrets: readonly string[],
): Logger {
  const redact = (text: string) =>
    secrets.reduce((rest, secret) => rest.replaceAll(secret, '[secret]'), oneLine(text));
  const tell = (level: LogLevel, message: string) => {
    const line = redact(message);
    // PVE drops the empty message and "0" [B20].
    if (line !== '') notify(level, line);
  };
  return {
    info: (message) => {
      file.info(message);
      tell('info', message);
    },
    warn: (message) => {
      file.warn(message);
      tell('warn', message);
    },
    error: (message) => {
      file.error(message);
      tell('err', message);
    },
    debug: (message, details) => file.debug(details ?? {}, message),
  };
}
