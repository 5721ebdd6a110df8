import type { Readable } from 'node:stream';

const maxLine = 1000;
const maxLines = 20;

/** What a program said on stderr, for its error. */
export interface LastWords {
  last(): string | undefined;
  all(): string;
}

/** Reads a program's stderr and keeps its last lines, in bounded memory. */
export function lastLines(stream: Readable, onLine: (line: string) => void): LastWords {
  const lines: string[] = [];
  let rest = '';
  const end = (text: string) => {
    const line = text.trim();
    if (line === '') return;
    lines.push(line);
    if (lines.length > maxLines) lines.shift();
    onLine(line);
  };
  stream.setEncoding('utf8');
  stream.on('data', (text: string) => {
    const parts = (rest + text).split('\n');
    rest = parts.pop() ?? '';
    for (const part of parts) end(part.slice(0, maxLine));
    rest = rest.slice(0, maxLine);
  });
  stream.on('end', () => end(rest));
  stream.on('error', () => undefined);
  return { last: () => lines.at(-1), all: () => lines.join('\n') };
}
