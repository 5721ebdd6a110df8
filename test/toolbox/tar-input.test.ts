import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { checkTar } from '../../src/toolbox/tar-check.ts';
import { LogLines } from './support/log.ts';
import { container, member } from './support/tar-archive.ts';

const options = { log: new LogLines(), signal: new AbortController().signal };
let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'tar-input-'));
});
afterAll(async () => {
  await rm(directory, { recursive: true });
});

const programs: Record<string, string> = {
  gz: 'gzip',
  bz2: 'bzip2',
  xz: 'xz',
  zst: 'zstd',
  lzo: 'lzop',
};
const has = (program: string) => {
  try {
    execFileSync(program, ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
};

describe('compression', () => {
  for (const [suffix, program] of Object.entries(programs)) {
    test.skipIf(!has(program))(`.tar.${suffix}`, async () => {
      const packed = execFileSync(program, ['-c'], { input: container() });
      const path = join(directory, `a.tar.${suffix}`);
      await writeFile(path, packed);
      expect(await checkTar(path, options)).toMatchObject({ entries: 13, deviceCount: 0 });
      // Cut off, renamed, with something behind it.
      await writeFile(path, packed.subarray(0, -7));
      await expect(checkTar(path, options)).rejects.toThrow(/cannot be restored/);
      await writeFile(path, container());
      await expect(checkTar(path, options)).rejects.toThrow(/is not compressed so/);
      const plain = join(directory, 'b.tar');
      await writeFile(plain, packed);
      await expect(checkTar(plain, options)).rejects.toThrow(`compressed by ${program}`);
    });
  }

  test.each(['tar', 'tar.gz', 'tar.zst'])(
    'one byte that is not what it was: .%s',
    async (suffix) => {
      const plain = container(member({ name: './large' }, randomBytes(3 << 20)));
      const program = { tar: 'cat', 'tar.gz': 'gzip', 'tar.zst': 'zstd' }[suffix] ?? '';
      const archive = execFileSync(program, { input: plain, maxBuffer: 1e8 });
      const sha256 = createHash('sha256').update(archive).digest('hex');
      const path = join(directory, `hashed.${suffix}`);
      await writeFile(path, archive);
      expect(await checkTar(path, { ...options, sha256 })).toMatchObject({ entries: 14 });
      // In a header, in the midst, in the padding at the end.
      for (const at of [160, archive.length >> 1, archive.length - 1]) {
        const flipped = Buffer.from(archive);
        flipped.writeUInt8(flipped.readUInt8(at) ^ 1, at);
        await writeFile(path, flipped);
        await expect(checkTar(path, { ...options, sha256 })).rejects.toThrow(
          /damaged: its content is not what was backed up$/,
        );
      }
      // The hash does not stand for the check.
      const bad = execFileSync(program, { input: plain.subarray(0, -1024), maxBuffer: 1e8 });
      await writeFile(path, bad);
      const badHash = createHash('sha256').update(bad).digest('hex');
      await expect(checkTar(path, { ...options, sha256: badHash })).rejects.toThrow(/is cut off/);
    },
  );

  test('no other names, no other files', async () => {
    for (const name of ['a.tgz', 'a.tar.br', 'a.tar.gz.old', 'a.zip']) {
      await writeFile(join(directory, name), container());
      await expect(checkTar(join(directory, name), options)).rejects.toThrow(/is none of \.tar/);
    }
    const path = join(directory, 'empty.tar');
    await writeFile(path, '');
    await expect(checkTar(path, options)).rejects.toThrow(/is empty/);
    const fifo = join(directory, 'fifo.tar');
    execFileSync('mkfifo', [fifo]);
    await expect(checkTar(fifo, options)).rejects.toThrow(/not a regular file/);
  });

  test('ends when it is cancelled', async () => {
    const path = join(directory, 'a.tar');
    await writeFile(path, container());
    const signal = AbortSignal.abort();
    await expect(checkTar(path, { ...options, signal })).rejects.toThrow('cancelled');
  });
});
