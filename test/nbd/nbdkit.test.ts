import { access, writeFile } from 'node:fs/promises';
import { execa } from 'execa';
import { describe, expect, test } from 'vitest';
import { startNbdkit } from '../../fixtures/nbd/servers.ts';
import { connectNbd } from '../../src/nbd/client.ts';
import { connected, scratch, wholeMap } from './support.ts';

const MiB = 1 << 20;

/** nbdkit's pattern plugin: each 8 bytes hold their own offset. */
function patternAt(offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i += 8) bytes.writeBigUInt64BE(BigInt(offset + i), i);
  return bytes;
}

describe.each([
  ['structured replies', []],
  ['simple replies', ['--no-sr']],
])('nbdkit with %s', (_name, args) => {
  const structured = args.length === 0;

  test('pattern: data beyond 4 GiB comes from the right place', async () => {
    const server = await startNbdkit(await scratch(), ...args, 'pattern', 'size=1T');
    const connection = await connected({ ...server, contexts: ['base:allocation'] });
    expect(connection.size).toBe(2 ** 40);
    expect(connection.info.canDf).toBe(structured);
    expect(connection.contexts.size).toBe(structured ? 1 : 0);
    const offsets = Array.from({ length: 40 }, (_, i) => i * 25 * 2 ** 30 + 8 * i);
    const read = await Promise.all(offsets.map((offset) => connection.read(offset, 81920)));
    read.forEach((data, i) => {
      expect(data.equals(patternAt(offsets[i] ?? 0, 81920))).toBe(true);
    });
  });

  test('memory: what is written is read back', async () => {
    const server = await startNbdkit(await scratch(), ...args, 'memory', '16M');
    const connection = await connected(server);
    await connection.write(5 * MiB + 512, patternAt(0, MiB), { fua: true });
    await connection.writeZeroes(5 * MiB + 1024, 512);
    await connection.trim(5 * MiB + 2048, 512);
    await connection.flush();
    const expected = patternAt(0, MiB).fill(0, 512, 1024).fill(0, 1536, 2048);
    expect((await connection.read(5 * MiB + 512, MiB)).equals(expected)).toBe(true);
  });

  test('error filter: errors are of one request each', async () => {
    const server = await startNbdkit(
      await scratch(),
      ...[...args, '--filter=error', 'memory', '16M'],
      ...['error-pread=ENOSPC', 'error-pread-rate=50%'],
    );
    const connection = await connected(server);
    const results = await Promise.allSettled(
      Array.from({ length: 200 }, (_, i) => connection.read(i * 4096, 4096)),
    );
    const failed = results.filter(({ status }) => status === 'rejected');
    expect(failed.length).toBeGreaterThan(20);
    expect(failed.length).toBeLessThan(180);
    for (const { reason } of failed as PromiseRejectedResult[]) {
      expect(reason).toMatchObject({ name: 'NbdError', code: 'ENOSPC', errno: 28 });
    }
  });

  test('delay filter: 16 requests wait together [E1], an abort does not wait', async () => {
    const server = await startNbdkit(
      await scratch(),
      ...[...args, '--filter=delay', 'pattern', '16M', 'delay-read=500ms'],
    );
    const connection = await connected(server);
    const controller = new AbortController();
    let answered = false;
    const reads = Promise.all(
      Array.from({ length: 15 }, async (_, i) => {
        const data = await connection.read(i * 65536, 65536);
        answered = true;
        return data.equals(patternAt(i * 65536, 65536));
      }),
    );
    const started = Date.now();
    const aborted = connection.read(0, 8 * MiB, { signal: controller.signal });
    const queued = connection.read(0, MiB, { signal: controller.signal });
    const reason = new Error('enough');
    setTimeout(() => controller.abort(reason), 20);
    await expect(aborted).rejects.toBe(reason);
    await expect(queued).rejects.toBe(reason);
    expect(answered).toBe(false);
    expect(await reads).not.toContain(false);
    // One after the other they would take more than 7 s.
    expect(Date.now() - started).toBeLessThan(5000);
    // The late reply, 8 MiB of it, has gone nowhere and the next one is right.
    expect((await connection.read(MiB, 65536)).equals(patternAt(MiB, 65536))).toBe(true);
    await expect(connection.read(0, 512, { signal: controller.signal })).rejects.toBe(reason);
  });

  test('a server that is killed: every request rejects with one reason', async () => {
    const room = await scratch();
    const socketPath = room.path('killed.sock');
    const nbdkit = room.start('nbdkit', [
      ...['-f', '-U', socketPath, ...args, '--filter=delay', 'memory', '16M', 'delay-read=10'],
    ]);
    const connection = await connected({
      socketPath: (await waitFor(socketPath)) ?? '',
      exportName: '',
    });
    const reads = Array.from({ length: 30 }, (_, i) => connection.read(i * 512, 512));
    setTimeout(() => nbdkit.kill('SIGKILL'), 50);
    const reasons = (await Promise.allSettled(reads)).map((r) =>
      r.status === 'rejected' ? r.reason : undefined,
    );
    expect(new Set(reasons).size).toBe(1);
    expect(reasons[0]).toMatchObject({ code: 'ECONNRESET' });
  });
});

async function waitFor(path: string): Promise<string | undefined> {
  for (let i = 0; i < 500; i += 1) {
    if (
      await access(path).then(
        () => true,
        () => false,
      )
    )
      return path;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return undefined;
}

test('sparse-random: block status agrees with the data', async () => {
  const server = await startNbdkit(
    await scratch(),
    ...['sparse-random', 'size=64M', 'seed=7', 'percent=25', 'runlength=262144'],
  );
  const connection = await connected({ ...server, contexts: ['base:allocation'] });
  const map = await wholeMap(connection, 'base:allocation');
  const zeroBytes = map.reduce((sum, { length, flags }) => sum + (flags & 2 ? length : 0), 0);
  expect(zeroBytes).toBeGreaterThan(32 * MiB);
  expect(map.length).toBeGreaterThan(10);
  for (const { offset, length, flags } of map) {
    const data = await connection.read(offset, Math.min(length, 65536));
    expect(data.every((byte) => byte === 0)).toBe((flags & 2) !== 0);
  }
});

describe('oddities', () => {
  test('a server of the old handshake is refused', async () => {
    const server = await startNbdkit(await scratch(), '-o', 'memory', '1M');
    await expect(connectNbd(server)).rejects.toMatchObject({
      code: 'EPROTO',
      message: expect.stringContaining('oldstyle'),
    });
  });

  test('a server that knows no flag but the fixed newstyle', async () => {
    const server = await startNbdkit(await scratch(), '--mask-handshake=0x1', 'pattern', '1M');
    const connection = await connected(server);
    expect((await connection.read(0, 4096)).equals(patternAt(0, 4096))).toBe(true);
  });

  test('a huge minimum block size', async () => {
    const server = await startNbdkit(
      await scratch(),
      ...['--filter=blocksize-policy', 'pattern', '1M', 'blocksize-minimum=64K'],
      ...['blocksize-preferred=64K', 'blocksize-maximum=128K', 'blocksize-error-policy=error'],
    );
    const connection = await connected(server);
    expect(connection.info.blockSize).toEqual({
      minimum: 65536,
      preferred: 65536,
      maximum: 131072,
    });
    await expect(connection.read(0, 4096)).rejects.toThrow('not a multiple of 65536');
    await expect(connection.read(0, 196608)).rejects.toThrow('takes 131072 bytes at a time');
    expect((await connection.read(65536, 65536)).equals(patternAt(65536, 65536))).toBe(true);
  });

  test('an unfragmented read may be refused by size: EOVERFLOW is of that request', async () => {
    const script = `case "$1" in
      get_size) echo 1048576 ;;
      pread) if [ "$3" -gt 65536 ]; then echo 'EOVERFLOW too large' >&2; exit 1; fi
             dd if=/dev/zero bs="$3" count=1 status=none ;;
      *) exit 2 ;;
    esac`;
    const room = await scratch();
    const path = room.path('plugin.sh');
    await writeFile(path, `#!/bin/bash\n${script}\n`, { mode: 0o755 });
    await execa('bash', ['-n', path]);
    const connection = await connected(await startNbdkit(room, 'sh', path));
    await expect(connection.read(0, 131072)).rejects.toMatchObject({
      code: 'EOVERFLOW',
      errno: 75,
    });
    expect((await connection.read(0, 4096)).length).toBe(4096);
  });
});
