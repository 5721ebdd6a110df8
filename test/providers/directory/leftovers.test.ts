import { execFile } from 'node:child_process';
import { mkdir, readdir, stat, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, onTestFinished, test } from 'vitest';
import { backUp, chunkFiles, MemoryVolume, makeStorage, patterned, restore } from './setup.ts';

const run = promisify(execFile);
const job = { startTime: new Date() };
const disks = () => [new MemoryVolume('drive-scsi0', patterned(512, 1))];

/** Returns how to unmount. */
async function mount(...args: string[]): Promise<() => Promise<void>> {
  await run('mount', args);
  let mounted = true;
  const unmount = async () => {
    if (mounted) await run('umount', [args.at(-1) ?? '']);
    mounted = false;
  };
  onTestFinished(unmount);
  return unmount;
}

test.each(['removed', 'partial'])(
  'a .%s directory that cannot be removed is a warning',
  async (kind) => {
    const storage = await makeStorage();
    const { path, provider, log } = storage;
    await provider.startJob?.(job);
    const directory = join(path, `100/qemu-2026-11-23T12:00:00Z.${kind}`);
    await mkdir(join(directory, 'busy'), { recursive: true });
    const unmount = await mount('-t', 'tmpfs', 'tmpfs', join(directory, 'busy'));
    await provider.startJob?.(job);
    expect(log.lines).toContainEqual(
      expect.stringMatching(`warn ${directory} cannot be removed: .*`),
    );
    await backUp(storage, disks());
    await unmount();
    await provider.startJob?.(job);
    await expect(stat(directory)).rejects.toThrow('ENOENT');
  },
);

test('a chunk that cannot be read now is not taken for damaged', async () => {
  const storage = await makeStorage();
  const { path, provider, log } = storage;
  const { backup } = await backUp(storage, disks());
  const [file = ''] = await chunkFiles(path);
  const partial = join(path, '100/qemu-2026-11-23T12:00:00Z.partial');
  await mkdir(partial);
  await writeFile(join(partial, 'run.json'), '{"bootId":"of another boot"}');
  await utimes(join(partial, 'run.json'), 0, 0);
  // Nobody can read this one.
  const unmount = await mount('--bind', '/sys/bus/cpu/drivers_probe', file);
  await provider.startJob?.(job);
  expect(log.lines).toContainEqual(expect.stringMatching(`warn ${partial} cannot be removed: E`));
  expect((await stat(partial)).isDirectory()).toBe(true);
  await unmount();
  await provider.startJob?.(job);
  await expect(stat(partial)).rejects.toThrow('ENOENT');
  expect(await readdir(join(path, backup.archiveName))).not.toContain('damaged');
  expect(await restore(provider, backup.archiveName, 'drive-scsi0')).toHaveLength(512);
});

test('what a kill in the last step of a commit left is removed without reading a chunk', async () => {
  const storage = await makeStorage();
  const { path, provider, log } = storage;
  await backUp(storage, disks());
  const partial = join(path, '100/qemu-2026-11-23T12:00:00Z.partial');
  await mkdir(partial);
  await provider.startJob?.(job);
  await expect(stat(partial)).rejects.toThrow('ENOENT');
  expect(log.lines.join('\n')).not.toContain('are checked');
});
