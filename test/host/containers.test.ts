import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { HostProcess, startTime } from '../../fixtures/host/host-process.ts';

const guest = { vmid: 100, vmtype: 'lxc', 'start-time': 1_795_428_402 };
const volname = 'backup/100/lxc-2026-11-23T10:06:42Z';
const success = { vmid: 100, vmtype: 'lxc', success: true, info: {} };

let store: string;
let rootfs: string;
let host: HostProcess;
/** Stands for the process that called `backup_container`. */
let caller: ChildProcess;

beforeEach(async () => {
  store = await mkdtemp(join(tmpdir(), 'store-'));
  rootfs = await mkdtemp(join(tmpdir(), 'rootfs-'));
  await mkdir(join(rootfs, 'usr/sbin'), { recursive: true });
  await symlink('usr/sbin', join(rootfs, 'sbin'));
  for (let i = 0; i < 12; i++) await writeFile(join(rootfs, `file${i}`), `${i}`);
  caller = spawn('sleep', ['60']);
});

afterEach(async () => {
  caller.kill('SIGKILL');
  await host.destroy();
  await rm(store, { recursive: true, force: true });
  await rm(rootfs, { recursive: true, force: true });
});

async function open(fault = ''): Promise<void> {
  host = await HostProcess.open({ type: 'sample', path: store, 'sample-fault': fault });
}

const source = () => ({ vmid: 100, directory: rootfs, sources: ['./'], 'backup-user-id': 100_000 });
const backup = async () => ({
  ...source(),
  caller: { pid: caller.pid ?? 0, 'start-time': await startTime(caller.pid ?? 0) },
  'guest-config': Buffer.from('arch: amd64\n').toString('base64'),
  'firewall-config': '',
  'exclude-patterns': ['/tmp/?*'],
});

async function begin(): Promise<void> {
  expect((await host.call('backup_init', guest)).error).toBeUndefined();
  const mechanism = await host.call('backup_get_mechanism', { vmid: 100, vmtype: 'lxc' });
  expect(mechanism.result).toEqual({ mechanism: 'directory' });
  expect((await host.call('backup_container_prepare', source())).result).toEqual({});
}

describe('A8: the second connection', () => {
  test('serves the child of backup_container, whose log lines come there', async () => {
    await open('run:flood');
    await begin();
    expect(await host.second.call('backup_container', await backup())).toHaveProperty('result');
    expect(host.notifications).toEqual([]);
    expect(host.second.notifications.length).toBeGreaterThan(0);
    expect((await host.call('backup_cleanup', success)).result).toHaveProperty('stats');
    expect((await host.call('list_volumes')).result).toMatchObject([{ volname, subtype: 'lxc' }]);
  });

  test('a line that a killed child left unfinished does not harm the next child', async () => {
    await open();
    await begin();
    host.second.send('{"jsonrpc":"2.0","id":1,"method":"backup_con');
    host.second.send('\n');
    expect((await host.second.call('ping')).result).toEqual({});
    expect(await host.second.call('backup_container', await backup())).toHaveProperty('result');
  });

  test.each(['open', 'status', 'free_image', 'shutdown', 'backup_cleanup'])(
    'does not serve %s',
    async (method) => {
      await open();
      expect((await host.second.call(method, success)).error?.code).toBe(-32601);
    },
  );

  test('cancel ends the backup', async () => {
    await open('run:hang');
    await begin();
    const running = host.second.call('backup_container', await backup());
    await host.second.call('ping');
    await host.second.call('cancel');
    expect((await running).error).toEqual({ code: 2, message: 'cancelled' });
  });
});

describe('A10: a child that dies is no success', () => {
  test('killed in the middle, and PVE calls cleanup at once', async () => {
    await open('run:hang:100');
    await begin();
    void host.second.call('backup_container', await backup());
    await expect.poll(() => host.second.notifications.length).toBe(1);
    caller.kill('SIGKILL');
    const cleanup = await host.call('backup_cleanup', success);
    expect(cleanup.error?.message).toContain('no archive is known to be written');
    expect((await host.call('list_volumes')).result).toEqual([]);
  }, 30_000);

  test('killed before it called at all', async () => {
    await open();
    await begin();
    const cleanup = await host.call('backup_cleanup', success);
    expect(cleanup.error?.message).toContain('no archive is known to be written');
  });

  test('a pid that is somebody else by now is not entered', async () => {
    await open();
    await begin();
    const params = await backup();
    params.caller['start-time'] -= 1;
    expect((await host.second.call('backup_container', params)).error?.code).toBe(1);
    expect((await host.call('list_volumes')).result).toEqual([]);
  });
});

describe('the order of calls', () => {
  test('A9: a privileged container comes over the first connection', async () => {
    await open();
    await begin();
    const params = { ...(await backup()), 'backup-user-id': 0 };
    expect((await host.call('backup_container', params)).result).toEqual({});
    expect((await host.call('backup_container', params)).error?.message).toBe(
      'guest 100 has been backed up already',
    );
  });

  test('a container is no VM, nor the other way round', async () => {
    await open();
    expect((await host.call('backup_container_prepare', source())).error?.message).toContain(
      'backup_init comes first',
    );
    await host.call('backup_init', guest);
    const vm = { vmid: 100, 'guest-config': '', volumes: {} };
    expect((await host.call('backup_vm', vm)).error?.message).toBe('guest 100 is a container');
    await host.call('backup_init', { ...guest, vmtype: 'qemu' });
    expect((await host.call('backup_container_prepare', source())).error?.message).toBe(
      'guest 100 is a VM',
    );
  });

  test.each([
    ['a relative directory', { directory: 'mnt' }],
    ['a source that is an option', { sources: ['--checkpoint-action=exec=id'] }],
    ['a source outside', { sources: ['/etc'] }],
    ['no source', { sources: [] }],
  ])('%s is refused', async (_name, wrong) => {
    await open();
    await host.call('backup_init', guest);
    const reply = await host.call('backup_container_prepare', { ...source(), ...wrong });
    expect(reply.error?.code).toBe(-32602);
  });
});

describe('C2, C7: restore', () => {
  test('a tar file, released by cleanup, which may come at any time', async () => {
    await open();
    await begin();
    await host.second.call('backup_container', await backup());
    const mechanism = await host.call('restore_get_mechanism', { volname });
    expect(mechanism.result).toEqual({ mechanism: 'tar', vmtype: 'lxc' });
    const opened = await host.call('restore_container_init', { volname });
    const path = String(opened.result?.['tar-path']);
    const { stdout } = await execa('tar', ['-tf', path]);
    expect(stdout.split('\n')).toContain('./file11');
    expect((await host.call('restore_container_cleanup', { volname })).result).toEqual({});
    expect((await host.call('restore_container_cleanup', { volname })).result).toEqual({});
  });

  test('an archive that fails the check is refused', async () => {
    await open();
    await begin();
    await rm(join(rootfs, 'sbin'));
    await host.second.call('backup_container', await backup());
    const reply = await host.call('restore_container_init', { volname });
    expect(reply.error?.message).toContain('sbin');
  });
});
