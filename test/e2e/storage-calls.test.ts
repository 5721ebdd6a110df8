import { readdir, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Backup, type Bench, efiDisk, MiB, startBench } from './support/bench.ts';
import { guestConfig } from './support/guest.ts';

const disks = [{ device: 'drive-scsi0', size: 16 * MiB, seed: 1 }, efiDisk];
/** What a restore writes, whether the backup was full or incremental. */
const archiveSize = disks.reduce((sum, { size }) => sum + size, 0);
const mapLines =
  '#qmdump#map:efidisk0:drive-efidisk0:local:raw:\n#qmdump#map:scsi0:drive-scsi0:local:raw:\n';

interface ListEntry {
  readonly volid: string;
  readonly vmid: number | string;
  readonly size: number;
  readonly notes?: string;
  readonly protected?: number;
}

let bench: Bench;
let first: Backup;
let second: Backup;

beforeAll(async () => {
  bench = await startBench({ disks });
  first = await bench.backUp();
  await bench.vm.write('drive-scsi0', 0, { pattern: 0x77, length: 8 * MiB });
  await bench.vm.write('drive-scsi0', 4 * MiB, { pattern: 0x78, length: 8 * MiB });
  second = await bench.backUp();
  expect([first.exitCode, second.exitCode], first.log + second.log).toEqual([0, 0]);
});

afterAll(() => bench.close());

/** The programs of PVE that make storage calls; the commands are the same. */
const programs = {
  pvesm: (args: readonly string[]) => bench.node.pvesm(args),
  'pvesm -T': (args: readonly string[]) => bench.node.pvesm(args, { taint: true }),
  'pvedaemon -T': (args: readonly string[]) => bench.node.pvedaemonCall(args),
};
type Program = keyof typeof programs;
const all = Object.keys(programs) as Program[];

/** What a command prints, as JSON; pvedaemon's answers are that anyway. */
async function ask(program: Program, args: readonly string[]): Promise<unknown> {
  const json = program.startsWith('pvesm') ? ['--json'] : [];
  const { exitCode, stdout, stderr } = await programs[program]([...args, ...json]);
  expect(exitCode, stderr).toBe(0);
  expect(stderr).toBe('');
  return stdout === '' ? undefined : JSON.parse(stdout);
}

const entryOf = async (volid: string): Promise<ListEntry | undefined> =>
  (await bench.node.pvesmJson<ListEntry[]>(['list', 'vault'])).find(
    (entry) => entry.volid === volid,
  );

describe.each(all)('%s', (program) => {
  const isDaemon = program.startsWith('pvedaemon');

  test('D5: lists the archives of VMs, by guest, too', async () => {
    const seconds = ({ volid }: Backup) => Date.parse(volid.slice(-20)) / 1000;
    const expected = [first, second].map((backup) => ({
      volid: backup.volid,
      vmid: 100,
      content: 'backup',
      subtype: 'qemu',
      format: 'bridge-dir-vm',
      size: archiveSize,
      ctime: seconds(backup),
      protected: 0,
    }));
    for (const filter of [[], ['--vmid', '100']]) {
      const list = (await ask(program, ['list', 'vault', ...filter])) as ListEntry[];
      // a number or a text, whatever Perl did with it last [B17]
      expect(list.map((entry) => ({ ...entry, vmid: Number(entry.vmid) }))).toMatchObject(expected);
    }
    expect(await ask(program, ['list', 'vault', '--vmid', '999'])).toEqual([]);
  });

  test('D6: shows one archive', async () => {
    expect(await ask(program, ['show', first.volid])).toMatchObject({
      path: join(bench.store, first.volid.replace('vault:backup/', '')),
      format: 'bridge-dir-vm',
      size: archiveSize,
      used: expect.any(Number),
      protected: 0,
    });
  });

  test('D4: knows the size of the store', async () => {
    const answer = await ask(program, isDaemon ? ['status', 'vault'] : ['status']);
    const status = (isDaemon ? answer : (answer as { vault: object }).vault) as {
      total: number;
      used: number;
      avail: number;
    };
    expect(status).toMatchObject({ type: 'bridge-dir', active: 1, enabled: 1 });
    expect(status.total).toBeGreaterThanOrEqual(status.used + status.avail);
    expect(Math.min(status.total, status.used, status.avail)).toBeGreaterThan(0);
  });

  test('D1: tells which store it is', async () => {
    const file = join(bench.store, '.pve-backup-bridge/store.json');
    const { id } = JSON.parse(await readFile(file, 'utf8')) as { id: string };
    expect(await ask(program, ['identity', 'vault'])).toEqual({ type: 'bridge-dir', id });
  });

  test('A11: extractconfig prints the config and nothing else', async () => {
    const { exitCode, stdout, stderr } = await programs[program](['extractconfig', first.volid]);
    expect([exitCode, stderr]).toEqual([0, '']);
    expect(`${stdout}\n`).toBe(guestConfig(100, disks) + mapLines);
  });

  test.each([
    ['of several lines', 'first\n\n  third 🙂 – Grüße\tend\n', 'show'],
    ['of 64 KiB', `${'0123456789abcde\n'.repeat(4096)}`, 'list'],
    ['like a number', '0', 'show'],
    ['like JSON', '{"jsonrpc":"2.0"}\r\n', 'list'],
  ])('B18, D8: notes %s; an empty text removes them', async (_, notes, command) => {
    await ask(program, ['notes', first.volid, notes]);
    const answer = await ask(program, [command, command === 'show' ? first.volid : 'vault']);
    expect([answer].flat()[0]).toMatchObject({ notes });
    await ask(program, ['notes', first.volid, '']);
    expect(await readdir(archivePath(first))).not.toContain('notes');
  });

  test('D7, D8: what is protected is not removed, and told in one line', async () => {
    await ask(program, ['protected', first.volid, '1']);
    expect((await entryOf(first.volid))?.protected).toBe(1);
    const refused = await programs[program]([isDaemon ? 'delete' : 'free', first.volid]);
    expect(refused.exitCode).toBe(255);
    const lines = (refused.all ?? '').split('\n').filter((line) => line.includes('protected'));
    const name = first.volid.replace('vault:', '');
    expect(lines).toEqual([`TASK ERROR: cannot remove protected archive '${name}' on 'vault'`]);
    expect(await entryOf(first.volid)).toBeDefined();
    await ask(program, ['protected', first.volid, '0']);
    expect((await entryOf(first.volid))?.protected).toBe(0);
  });

  test('an archive that is gone: an error in one line', async () => {
    const name = '100/qemu-2001-01-01T00:00:00Z';
    for (const command of ['show', 'extractconfig', isDaemon ? 'delete' : 'free']) {
      const { exitCode, all: output = '' } = await programs[program]([
        command,
        `vault:backup/${name}`,
      ]);
      expect([command, exitCode], output).toEqual([command, 255]);
      const lines = output.split('\n').filter((line) => line.includes(`no archive ${name}`));
      expect(lines).toHaveLength(1);
    }
  });

  test.each([['../../etc/passwd'], ['100/../100/qemu-2001-01-01T00:00:00Z'], ['100/x'], ['']])(
    'D5: %j is no name of an archive',
    async (name) => {
      const { exitCode, all: output } = await programs[program](['show', `vault:backup/${name}`]);
      expect(exitCode, output).toBe(255);
      expect(output).toMatch(/^unable to parse (?:bridge volume name|volume ID) '[^\n]*'$/m);
    },
  );

  test('A12, D4: a missing path is inactive, said clearly and soon', async () => {
    await rename(bench.store, `${bench.store}.away`);
    try {
      const start = performance.now();
      const args = isDaemon ? ['status', 'vault'] : ['status', '--json'];
      const { exitCode, stdout, stderr } = await programs[program](args);
      // the poll itself may take 2 s; Perl has to start as well
      expect(performance.now() - start).toBeLessThan(2500);
      expect(exitCode).toBe(0);
      const answer = JSON.parse(stdout);
      expect(isDaemon ? answer : answer.vault).toMatchObject({ active: 0, total: 0, avail: 0 });
      expect(stderr.trim().split('\n')).toEqual([expect.stringContaining(bench.store)]);
    } finally {
      await rename(`${bench.store}.away`, bench.store);
    }
  });
});

const archivePath = ({ volid }: Backup) => join(bench.store, volid.replace('vault:backup/', ''));

async function chunks(): Promise<string[]> {
  const names = await readdir(join(bench.store, 'chunks'), { recursive: true });
  return names.filter((name) => name.includes('/'));
}

describe('D7: removal', () => {
  test('frees what no other archive names, and nothing else', async () => {
    const before = await chunks();
    const { exitCode, all: output } = await bench.node.pvesm(['free', second.volid]);
    expect(exitCode, output).toBe(0);
    expect(output).toContain(`Removed volume '${second.volid}'`);
    expect(await entryOf(second.volid)).toBeUndefined();
    const after = await chunks();
    expect(after.length).toBeLessThan(before.length);
    const restore = await bench.restore(first);
    expect(restore, restore.log).toMatchObject({ exitCode: 0, differing: [] });
  });

  test('of the last one leaves no chunk', async () => {
    const { exitCode, all: output } = await bench.node.pvedaemonCall(['delete', first.volid]);
    expect(exitCode, output).toBe(0);
    expect(await chunks()).toEqual([]);
    expect(await bench.node.pvesmJson(['list', 'vault'])).toEqual([]);
  });
});
