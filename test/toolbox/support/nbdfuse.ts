import { closeSync, constants, openSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { expect } from 'vitest';

/** An export as PVE shows it to a provider: a file made by nbdfuse, open with O_DIRECT [B7]. */
export async function startNbdfuse({
  device,
  socketPath,
}: {
  readonly device: string;
  readonly socketPath: string;
}) {
  const directory = await mkdtemp(join(tmpdir(), 'nbdfuse-'));
  const mountPoint = await mkdtemp(join(directory, 'm-'));
  const path = join(mountPoint, device);
  const pidFile = join(directory, 'pid');
  const uri = `nbd+unix:///${device}?socket=${socketPath}`;
  const program = execa('nbdfuse', ['--pidfile', pidFile, path, uri], { reject: false });
  await expect
    .poll(() => readFile(pidFile, 'utf8').catch(() => ''), { timeout: 10_000 })
    .not.toBe('');
  const fd = openSync(path, constants.O_RDWR | constants.O_DIRECT);
  return {
    path,
    mountPoint,
    fd,
    program,
    /** fallocate(2), as the shim does it. */
    deallocate: async (offset: number, length: number) => {
      const range = ['--offset', String(offset), '--length', String(length)];
      await execa('fallocate', ['--punch-hole', ...range, path]);
    },
    async close() {
      try {
        closeSync(fd);
      } catch {
        // nbdfuse has ended
      }
      await execa('umount', ['--internal-only', '--lazy', mountPoint], { reject: false });
      program.kill('SIGKILL');
      await program;
      await rm(directory, { recursive: true });
    },
  };
}
