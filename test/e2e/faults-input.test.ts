import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Bench, MiB, startBench } from './support/bench.ts';
import { expectBackup, expectQuiet, listed } from './support/faults.ts';
import { guestConfig } from './support/guest.ts';
import { pathsBelow } from './support/leftovers.ts';

const disks = [{ device: 'drive-scsi0', size: 4 * MiB, seed: 1 }];
const long = 'x'.repeat(10 * MiB);
let bench: Bench;
let volname: string;

beforeAll(async () => {
  bench = await startBench({ disks });
  volname = (await expectBackup(bench)).volid.replace('vault:', '');
});
afterAll(() => bench.close());

/** Calls a method of the storage plugin with arguments that no command line can hold. */
async function call(method: string, ...args: unknown[]): Promise<{ error?: string }> {
  const program = bench.node.run('storage-call', []);
  program.stdin?.end(JSON.stringify({ type: 'bridge-dir', method, args }));
  const { stdout = '', all } = await program;
  expect(stdout, all).toMatch(/^\{.*\}$/);
  return JSON.parse(stdout);
}

/** One short line, without what a terminal would act on. */
function expectOneLine(error: string | undefined): void {
  expect(error).toMatch(/^[^\p{Cc}]{10,400}\n$/u);
}

describe('names that are none', () => {
  const names = {
    'the parent': 'backup/..',
    'a way out': 'backup/100/../../../etc/passwd',
    'a way out behind a good name': () => `${volname}/../../x`,
    'an absolute path': '/etc/passwd',
    NUL: () => `${volname}\0`,
    'a newline': () => `${volname}\n`,
    'a newline in the middle': () => volname.replace('/qemu', '\n/qemu'),
    '10 MB': `backup/100/${long}`,
    'bytes that are no UTF-8': 'backup/100/qemu-\xff\xfe',
    'another content': () => volname.replace('backup', 'images'),
    nothing: '',
  };

  test.each(Object.entries(names))('D5, D6, D7: %s is no volname', async (_, name) => {
    const bad = typeof name === 'string' ? name : name();
    const scfg = { type: 'bridge-dir', path: bench.store, content: { backup: 1 } };
    const before = await pathsBelow(bench.node.root);
    for (const [method, ...args] of [
      ['parse_volname', bad],
      ['path', scfg, bad, 'vault'],
      ['volume_size_info', scfg, 'vault', bad],
      ['get_volume_attribute', scfg, 'vault', bad, 'notes'],
      ['update_volume_attribute', scfg, 'vault', bad, 'notes', 'text'],
      ['free_image', 'vault', scfg, bad, 0, 'bridge-dir-vm'],
    ] as const) {
      const { error } = await call(method, ...args);
      expectOneLine(error);
      expect(error).toContain('unable to parse bridge volume name');
    }
    expect(await pathsBelow(bench.node.root)).toEqual(before);
  });

  test.each([
    ['a way out', '../../x'],
    ['a path', 'a/b'],
    ['NUL', 'vault\0'],
    ['a newline', 'vault\n'],
    ['10 MB', long],
    ['bytes that are no UTF-8', 'v\xff\xfet'],
    ['nothing', ''],
  ])('D5: %s is no storage id', async (_, storeid) => {
    const scfg = { type: 'bridge-dir', path: bench.store, content: { backup: 1 } };
    const before = await pathsBelow(bench.node.root);
    const { error } = await call('list_volumes', storeid, scfg, null, ['backup']);
    expectOneLine(error);
    expect(await pathsBelow(bench.node.root)).toEqual(before);
  });

  test('C1, A11: through the programs, too, and the archive stays', async () => {
    const before = await pathsBelow(bench.node.root);
    for (const bad of [
      `vault:${volname}/../../x`,
      'vault:backup/../..',
      'vault:backup/1/qemu-1\nx',
    ]) {
      for (const program of [
        bench.node.pvesm(['show', bad]),
        bench.node.pvesm(['extractconfig', bad]),
        bench.node.pvesm(['notes', bad, 'text']),
        bench.node.pvesm(['free', bad]),
        bench.node.qmrestore(bad, 800),
      ]) {
        const { exitCode, all = '' } = await program;
        expect(exitCode).not.toBe(0);
        expect(all).toMatch(/unable to parse/);
      }
    }
    expect(await pathsBelow(bench.node.root)).toEqual(before);
    expect(await listed(bench.node)).toEqual([`vault:${volname}`]);
  });
});

describe('text that is anything', () => {
  test.each([
    ['dots and a newline', '../../etc/passwd\n..\n'],
    ['control characters', 'bell \x07, escape \x1b[31m'],
    ['characters beyond 16 bits', 'snow \u2603, \u{1f4be}'],
  ])('D8: notes of %s come back as they were', async (_, notes) => {
    const scfg = { type: 'bridge-dir', path: bench.store, content: { backup: 1 } };
    const set = await call('update_volume_attribute', scfg, 'vault', volname, 'notes', notes);
    expect(set).toEqual({ result: [] });
    const got = await call('get_volume_attribute', scfg, 'vault', volname, 'notes');
    expect(got).toEqual({ result: [notes] });
  });

  test('D8: notes of 10 MB are refused, the old ones stay', async () => {
    const scfg = { type: 'bridge-dir', path: bench.store, content: { backup: 1 } };
    await call('update_volume_attribute', scfg, 'vault', volname, 'notes', 'old');
    const { error } = await call('update_volume_attribute', scfg, 'vault', volname, 'notes', long);
    expectOneLine(error);
    const got = await call('get_volume_attribute', scfg, 'vault', volname, 'notes');
    expect(got).toEqual({ result: ['old'] });
  });

  test.each([
    ['10 MB', Buffer.from(`#${long}\n`)],
    ['NUL and bytes that are no UTF-8', Buffer.from('#\0\xff\xfe\xc3(\n# ../../x\r\n', 'latin1')],
  ])('B16: a config of %s comes back byte for byte', async (_, text) => {
    const path = bench.node.configPath(100);
    const usual = await readFile(path);
    const config = Buffer.concat([text, Buffer.from(guestConfig(100, disks))]);
    await bench.node.addVm(100, config);
    try {
      const backup = await bench.backUp();
      expect(backup.exitCode, backup.log.slice(-2000)).toBe(0);
      const got = Buffer.from(await bench.node.extractConfig(backup.volid));
      expect(got.subarray(0, config.length).equals(config)).toBe(true);
      expect(got.subarray(config.length).toString()).toMatch(/^(?:#qmdump#map:.*\n)+$/);
      expect((await bench.node.pvesm(['free', backup.volid])).exitCode).toBe(0);
    } finally {
      await bench.node.addVm(100, usual);
    }
    await expectQuiet(bench);
  });

  test('D5: foreign things in the store are neither listed nor in the way', async () => {
    const guest = join(bench.store, '100');
    await mkdir(join(guest, 'qemu-2026-11-23T10:06:42Z\n'));
    await mkdir(join(guest, 'qemu-2026-13-33T10:06:42Z'));
    await writeFile(join(bench.store, '7'), 'a file');
    expect(await listed(bench.node)).toEqual([`vault:${volname}`]);
  });
});
