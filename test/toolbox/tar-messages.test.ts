import { PassThrough } from 'node:stream';
import { finished } from 'node:stream/promises';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { TarMessages } from '../../src/toolbox/tar-messages.ts';

async function read(chunks: readonly Buffer[]) {
  const changes: string[] = [];
  const messages = new TarMessages((text) => void changes.push(text));
  const stream = new PassThrough();
  messages.read(stream);
  for (const chunk of chunks) stream.write(chunk);
  stream.end();
  await finished(stream);
  const { entries, totalBytes } = messages;
  return { changes, entries, totalBytes, last: messages.last(), all: messages.all() };
}

const said = Buffer.from(`./
./etc/
tar: ./etc/a\\: b: Cannot open: Permission denied
./etc/ü\\377
tar: ./log: file changed as we read it
tar: ./log2: File shrank by 1 byte; padding with zeros
tar: ./log3: File shrank by 12 bytes; padding with zeros
tar: ./gone: File removed before we read it
tar: ./x: Warning: Cannot llistxattrat: Operation not supported
.
Total bytes written: 123456789 (118MiB, 1.2GiB/s)
tar: Exiting with failure status due to previous errors
`);
const expected = {
  entries: 4,
  totalBytes: 123_456_789,
  changes: [
    './log: file changed as we read it',
    './log2: File shrank by 1 byte; padding with zeros',
    './log3: File shrank by 12 bytes; padding with zeros',
    './gone: File removed before we read it',
    './x: Warning: Cannot llistxattrat: Operation not supported',
  ],
  last: './etc/a\\: b: Cannot open: Permission denied',
  all: './etc/a\\: b: Cannot open: Permission denied',
};

describe('what tar says', () => {
  test('members, changes, errors and the total', async () => {
    expect(await read([said])).toEqual(expected);
    expect(await read([...said].map((byte) => Buffer.from([byte])))).toEqual(expected);
  });

  test('cut points change nothing', async () => {
    const cuts = fc.array(fc.nat(said.length), { maxLength: 20 });
    await fc.assert(
      fc.asyncProperty(cuts, async (points) => {
        const ends = [0, ...points.sort((a, b) => a - b), said.length];
        const chunks = ends.slice(1).map((end, at) => said.subarray(ends[at], end));
        expect(await read(chunks)).toEqual(expected);
      }),
      { numRuns: 50 },
    );
  });

  test('other programs on the way to tar are errors', async () => {
    const { last, entries } = await read([Buffer.from('nsenter: cannot open /x: No such file')]);
    expect([last, entries]).toEqual(['nsenter: cannot open /x: No such file', 0]);
  });

  test('memory is bounded: endless lines, endless errors', async () => {
    const long = await read(Array.from({ length: 100 }, () => Buffer.alloc(10_000, 'x')));
    expect(long.last?.length).toBe(20_000);
    const many = await read([Buffer.from('tar: ./x: Cannot open\n'.repeat(1000))]);
    expect(many.all.split('\n')).toHaveLength(20);
    const name = `./${'\\377'.repeat(4096)}`;
    const { changes } = await read([Buffer.from(`tar: ${name}: file changed as we read it\n`)]);
    expect(changes).toEqual([`${name}: file changed as we read it`]);
  });
});
