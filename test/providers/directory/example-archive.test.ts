import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { chunk, listNames, makeStorage, makeTemporary, patterned, restore } from './setup.ts';

const run = promisify(execFile);
const size = 2 * chunk;

async function writeImage(path: string, offset: number, data: Buffer): Promise<void> {
  const content = join(await makeTemporary(), 'content');
  await writeFile(content, data);
  const command = `write -s ${content} ${offset} ${data.length}`;
  await run('qemu-io', ['-f', 'qcow2', '-c', command, path]);
}

/** An archive as the example leaves it. */
async function makeExample(path: string, name: string, options: string[] = []): Promise<string> {
  const directory = join(path, name);
  await mkdir(directory, { recursive: true });
  await writeFile(join(directory, 'guest.conf'), `name: ${name}\n`);
  const image = join(directory, 'drive-scsi0.qcow2');
  const args = ['create', '-q', '-u', '-f', 'qcow2', ...options, image, String(size)];
  await run('qemu-img', args);
  return image;
}

const on = (backing: string) => ['-b', backing, '-F', 'qcow2'];

/** A full archive and two incremental ones; what the disk held at each. */
async function makeChain(path: string) {
  const disk = Buffer.alloc(size);
  const states: { name: string; content: Buffer }[] = [];
  for (const [time, offset] of [
    [1700000000, 0],
    [1700000100, 65536],
    [1700000200, chunk],
  ] as const) {
    const last = states.at(-1)?.name.replace('100/', '');
    const name = `100/qemu-${time}`;
    const image = await makeExample(
      path,
      name,
      last === undefined ? [] : on(`../${last}/drive-scsi0.qcow2`),
    );
    const data = patterned(200_000 - (200_000 % 512), time);
    await writeImage(image, offset, data);
    data.copy(disk, offset);
    states.push({ name, content: Buffer.from(disk) });
  }
  await writeFile(
    join(path, '100/previous-info'),
    '{"drive-scsi0":"qemu-1700000200/drive-scsi0.qcow2"}',
  );
  return states;
}

test('archives of Proxmox’s directory example are listed, restored and removed', async () => {
  const { provider, path } = await makeStorage();
  const states = await makeChain(path);
  const infos = await provider.listArchives({ vmid: 100 });
  expect(infos.map(({ name, vmtype }) => [name, vmtype]).sort()).toEqual(
    states.map(({ name }) => [name, 'qemu']),
  );
  const [oldest] = infos.sort((a, b) => a.name.localeCompare(b.name));
  expect(oldest?.startTime).toEqual(new Date(1_700_000_000_000));
  expect(oldest?.size).toBeGreaterThan(196_608);
  for (const { name, content } of states) {
    expect((await restore(provider, name, 'drive-scsi0')).equals(content)).toBe(true);
  }
  const archive = await provider.archive('100/qemu-1700000000');
  expect(Buffer.from(await archive.guestConfig()).toString()).toBe('name: 100/qemu-1700000000\n');
  expect(await archive.firewallConfig()).toBeUndefined();
});

test('restore leaves no qemu-nbd and no socket; holes are told', async () => {
  const storage = await makeStorage();
  const [{ name } = { name: '' }] = await makeChain(storage.path);
  const opened = await (await storage.provider.archive(name)).restoreVm?.();
  expect(opened?.volumes).toEqual(new Map([['drive-scsi0', size]]));
  const image = await opened?.openVolume('drive-scsi0');
  const extents = await image?.extents?.(0, size);
  expect(extents?.map(({ zero }) => zero)).toEqual([false, true]);
  expect(extents?.reduce((sum, { length }) => sum + length, 0)).toBe(size);
  const ours = async () => {
    const pids = (await readdir('/proc')).filter((each) => /^\d+$/.test(each));
    const lines = await Promise.all(
      pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')),
    );
    return lines
      .filter((line) => line.startsWith('qemu-nbd') || line.includes('/qemu-nbd'))
      .filter((line) => line.includes(storage.path));
  };
  expect(await ours()).toHaveLength(1);
  await opened?.close();
  expect(await ours()).toEqual([]);
});

test('an archive that others build on is not removed', async () => {
  const { provider, path } = await makeStorage();
  const states = await makeChain(path);
  for (const { name } of states.slice(0, 2)) {
    const refusal = /cannot be removed: the incremental archive .* builds on it/;
    await expect((await provider.archive(name)).remove()).rejects.toThrow(refusal);
  }
  expect(await listNames(provider)).toHaveLength(3);
  for (const { name } of states.reverse()) await (await provider.archive(name)).remove();
  expect(await listNames(provider)).toEqual([]);
});

describe('an image that leads out of its guest is refused, whatever it says', () => {
  async function secretOutside(path: string) {
    const outside = join(path, '..', 'secret.qcow2');
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', outside, String(size)]);
    return outside;
  }

  test.each<[string, (outside: string) => string[]]>([
    ['an absolute path', (outside) => on(outside)],
    ['dots', () => on('../../../secret.qcow2')],
    ['another guest', () => on('../../200/qemu-1700000000/drive-scsi0.qcow2')],
    ['dots behind a good start', () => on('../qemu-1700000000/../../../secret.qcow2')],
    [
      'json:',
      (outside) => on(`json:{"driver":"qcow2","file":{"driver":"file","filename":"${outside}"}}`),
    ],
    ['a protocol', (outside) => on(`file:${outside}`)],
    ['nbd', () => on('nbd://127.0.0.1:10809/x')],
    ['itself', () => on('../qemu-1700000900/drive-scsi0.qcow2')],
    ['a raw file', () => ['-b', '../qemu-1700000000/drive-scsi0.qcow2', '-F', 'raw']],
  ])('%s', async (_, options) => {
    const { provider, path } = await makeStorage();
    await makeChain(path);
    const name = '100/qemu-1700000900';
    await makeExample(path, name, options(await secretOutside(path)));
    const archive = await provider.archive(name);
    await expect(archive.restoreVm?.()).rejects.toThrow(/builds on/);
  });

  test('a data file', async () => {
    const { provider, path } = await makeStorage();
    const image = await makeExample(path, '100/qemu-1700000900');
    await rm(image);
    const option = `data_file=${join(path, 'data')},data_file_raw=on`;
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', option, image, String(size)]);
    const archive = await provider.archive('100/qemu-1700000900');
    await expect(archive.restoreVm?.()).rejects.toThrow(/its data lies in another file/);
  });

  test('a link in place of the image, or of a backup below it', async () => {
    const { provider, path } = await makeStorage();
    await makeChain(path);
    const outside = await secretOutside(path);
    const top = join(path, '100/qemu-1700000200/drive-scsi0.qcow2');
    await rm(top);
    await symlink(outside, top);
    const archive = await provider.archive('100/qemu-1700000200');
    await expect(archive.restoreVm?.()).rejects.toThrow();
    await rm(top);
    await run('qemu-img', [
      'create',
      '-q',
      '-u',
      '-f',
      'qcow2',
      ...on('../qemu-1700000100/drive-scsi0.qcow2'),
      top,
      String(size),
    ]);
    await (await archive.restoreVm?.())?.close();
    const below = join(path, '100/qemu-1700000100');
    await rename(below, join(path, '..', 'moved'));
    await symlink('../../moved', below);
    await expect(archive.restoreVm?.()).rejects.toThrow(/is not a directory/);
  });

  test('a missing link, a header cut short, and no image at all', async () => {
    const { provider, path } = await makeStorage();
    await makeChain(path);
    const archive = await provider.archive('100/qemu-1700000200');
    const middle = join(path, '100/qemu-1700000100/drive-scsi0.qcow2');
    const header = await readFile(middle);
    await writeFile(middle, header.subarray(0, 60));
    await expect(archive.restoreVm?.()).rejects.toThrow(/header is damaged/);
    await writeFile(middle, 'raw data, and then some more of it, to be longer than a header is');
    await expect(archive.restoreVm?.()).rejects.toThrow(/it is not qcow2/);
    await rm(middle);
    await expect(archive.restoreVm?.()).rejects.toThrow(/100\/qemu-1700000200 cannot be restored/);
  });
});
