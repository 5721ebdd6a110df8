import fc from 'fast-check';
import { expect, test } from 'vitest';
import { command } from '../../src/nbd/constants.ts';
import type { StreamParser } from '../../src/nbd/feed.ts';
import { encodeRequest, parseRequest, type Request } from '../../src/nbd/request-message.ts';
import { feedInPieces } from './support.ts';

function* record(seen: (Request | undefined)[]): StreamParser {
  for (;;) {
    const request = yield* parseRequest();
    seen.push(request);
    if (request?.type === command.write) yield { skip: request.length };
  }
}

const request = fc.record({
  flags: fc.integer({ min: 0, max: 0xffff }),
  type: fc.integer({ min: 0, max: 0xffff }),
  cookie: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  offset: fc.integer({ min: 0, max: 2 ** 53 - 1 }),
  length: fc.integer({ min: 0, max: 2000 }),
});

test('cut points never change the requests a server sees', () => {
  const requests = fc.array(request, { minLength: 1, maxLength: 8 });
  fc.assert(
    fc.property(requests, fc.array(fc.nat(), { maxLength: 20 }), (list, cuts) => {
      const stream = Buffer.concat(
        list.flatMap((one) => [
          encodeRequest(one),
          Buffer.alloc(one.type === command.write ? one.length : 0, 0xab),
        ]),
      );
      const seen: (Request | undefined)[] = [];
      feedInPieces(record(seen), stream, cuts);
      expect(seen).toEqual(list);
    }),
    { numRuns: 100 },
  );
});

test('what is no request is recognised', () => {
  const seen: (Request | undefined)[] = [];
  feedInPieces(record(seen), Buffer.from('GET / HTTP/1.0\r\nHost: localhost\r\n'), []);
  expect(seen).toEqual([undefined]);
});
