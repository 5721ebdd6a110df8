import type { Readable } from 'node:stream';

const maxLine = 1000;
const maxLines = 20;

/** Reads a program's stderr and keeps its last lines, in bounded memory. */
export function lastLines(
  stream: Readable,
  onLine: (line: string) => void,
): { last(): string | undefined; all(): string } {
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
