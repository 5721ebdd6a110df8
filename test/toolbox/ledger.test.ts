import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openLedger, recordBitmaps } from '../../src/toolbox/ledger.ts';

const size = 32 * 1024 ** 3;
const archiveId = '7a1f1f5e-8a26-4a54-a5f4-6f4f54b6a1c0';
const children: ChildProcess[] = [];
let root: string;

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'ledger-'));
  await mkdir(join(root, 'run/qemu-server'), { recursive: true });
});
afterEach(async () => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  await rm(root, { recursive: true });
});

/** A process in the place of QEMU. */
async function startVm(vmid = 100) {
  const child = spawn('sleep', ['63']);
  children.push(child);
  await writeFile(join(root, `run/qemu-server/${vmid}.pid`), `${child.pid}\n`);
  return {
    stop: async () => {
      child.kill('SIGKILL');
      await once(child, 'exit');
    },
  };
}

const key = (storeid = 'store', vmid = 100) => ({ root, storeid, vmid });
const file = (storeid = 'store', vmid = 100) =>
  join(root, 'run/pve-backup-bridge/bitmaps', storeid, `${vmid}.json`);

function record(
  options: { storeid?: string; vmid?: number; archiveId?: string; sizes?: object } = {},
) {
  const sizes = Object.entries(options.sizes ?? { 'drive-scsi0': size });
  return recordBitmaps({
    ...key(options.storeid, options.vmid),
    archiveId: options.archiveId ?? archiveId,
    volumes: new Map(sizes),
  });
}

async function holds(storeid?: string, vmid?: number): Promise<boolean> {
  return (await openLedger(key(storeid, vmid))).holds('drive-scsi0', size, archiveId);
}

describe('bitmap ledger', () => {
  test('B15: it holds what was recorded for this very QEMU process', async () => {
    await startVm();
    expect(await holds()).toBe(false);
    await record();
    expect(await holds()).toBe(true);
    expect(await holds()).toBe(true);
  });

  test('B15: a failed backup records nothing, so the one before stays the base', async () => {
    await startVm();
    await record();
    const ledger = await openLedger(key());
    expect(ledger.holds('drive-scsi0', size, 'of a failed backup')).toBe(false);
    expect(ledger.holds('drive-scsi0', size, archiveId)).toBe(true);
  });

  test('B15: the next archive takes the place of the one before', async () => {
    await startVm();
    await record();
    await record({ archiveId: 'next' });
    const ledger = await openLedger(key());
    // A store rolled back or a removed newest archive asks for the older one.
    expect(ledger.holds('drive-scsi0', size, archiveId)).toBe(false);
    expect(ledger.holds('drive-scsi0', size, 'next')).toBe(true);
  });

  test('E8: a disk that grew, shrank or was swapped is not held', async () => {
    await startVm();
    await record();
    const ledger = await openLedger(key());
    expect(ledger.holds('drive-scsi0', size + 1, archiveId)).toBe(false);
    expect(ledger.holds('drive-scsi0', size - 1, archiveId)).toBe(false);
    expect(ledger.holds('drive-scsi1', size, archiveId)).toBe(false);
  });

  test('E9: a VM that was stopped, restarted, hibernated or rolled back is another process', async () => {
    const vm = await startVm();
    await record();
    await vm.stop();
    expect(await holds()).toBe(false);
    await startVm();
    expect(await holds()).toBe(false);
    await record();
    expect(await holds()).toBe(true);
  });

  test('E9: the same pid with another start time is another process', async () => {
    await startVm();
    await record();
    const text = JSON.parse(await readFile(file(), 'utf8'));
    text.qemu.startTime--;
    await writeFile(file(), JSON.stringify(text));
    expect(await holds()).toBe(false);
  });

  test('E9: migrated away and back is another process, whatever the other node recorded', async () => {
    const vm = await startVm();
    await record();
    await vm.stop();
    await rm(join(root, 'run/qemu-server/100.pid'));
    expect(await holds()).toBe(false);
    await startVm();
    expect(await holds()).toBe(false);
  });

  test('E9: storages and guests have bitmaps of their own', async () => {
    await startVm(100);
    await startVm(101);
    await record();
    expect(await holds('other')).toBe(false);
    expect(await holds('store', 101)).toBe(false);
    // Two storages on one path: the file of one is no file of the other, even when it is copied.
    await mkdir(join(root, 'run/pve-backup-bridge/bitmaps/other'));
    await writeFile(file('other'), await readFile(file()));
    await writeFile(file('store', 101), await readFile(file()));
    expect(await holds('other')).toBe(false);
    expect(await holds('store', 101)).toBe(false);
  });

  test('devices that were backed up without a bitmap are forgotten', async () => {
    await startVm();
    await record({ sizes: { 'drive-scsi0': size, 'drive-scsi1': size } });
    await record({ sizes: { 'drive-scsi1': size } });
    const ledger = await openLedger(key());
    expect(ledger.holds('drive-scsi0', size, archiveId)).toBe(false);
    expect(ledger.holds('drive-scsi1', size, archiveId)).toBe(true);
    await record({ sizes: {} });
    await expect(stat(file())).rejects.toThrow('ENOENT');
  });

  test('without a running QEMU nothing is recorded, and the old record goes', async () => {
    const vm = await startVm();
    await record();
    await vm.stop();
    await record();
    await expect(stat(file())).rejects.toThrow('ENOENT');
    await record();
  });

  test.each(['', '0', '-1', '1 2', 'x', '99999999999999999999'])(
    'a pid file with "%s"',
    async (pid) => {
      await startVm();
      await record();
      await writeFile(join(root, 'run/qemu-server/100.pid'), pid);
      expect(await holds()).toBe(false);
    },
  );

  test.each([
    ['empty', () => ''],
    ['cut short', (text: string) => text.slice(0, -10)],
    ['no JSON', () => 'drive-scsi0'],
    ['null', () => 'null'],
    ['of another version', (text: string) => text.replace('"version":1', '"version":2')],
    ['without devices', (text: string) => text.replace('"devices"', '"other"')],
    ['of a wrong type', (text: string) => text.replace(`"size":${size}`, `"size":"${size}"`)],
    ['10 MB of text', () => '['.repeat(10_000_000)],
  ])('a file that is %s holds nothing, and is replaced', async (_, damage) => {
    await startVm();
    await record();
    await writeFile(file(), damage(await readFile(file(), 'utf8')));
    expect(await holds()).toBe(false);
    await record();
    expect(await holds()).toBe(true);
  });

  test('a device called like a property of every object is not held', async () => {
    await startVm();
    await record();
    const ledger = await openLedger(key());
    expect(ledger.holds('constructor', size, archiveId)).toBe(false);
    expect(ledger.holds('__proto__', size, archiveId)).toBe(false);
  });

  test('only root reads it, and no draft is left', async () => {
    await startVm();
    await record();
    expect((await stat(file())).mode & 0o777).toBe(0o600);
    expect((await stat(join(file(), '..'))).mode & 0o777).toBe(0o700);
    expect(await readdir(join(file(), '..'))).toEqual(['100.json']);
  });
});
