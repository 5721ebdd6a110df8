import type { Logger } from '../../../src/sdk/provider.ts';

/** Keeps what the task log would show. */
export class LogLines implements Logger {
  readonly lines: string[] = [];
  readonly info = (message: string) => void this.lines.push(message);
  readonly warn = (message: string) => void this.lines.push(`warn: ${message}`);
  readonly error = (message: string) => void this.lines.push(`error: ${message}`);
  readonly debug = () => undefined;
}
