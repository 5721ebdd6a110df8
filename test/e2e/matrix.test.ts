import { cp, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { PveNode } from '../../fixtures/pve/pve-node.ts';

/** What of the base class is no method that PVE calls on a plugin. */
const functions = [
  'decode_value',
  'encode_value',
  'get_standard_option',
  'make_path',
  'parse_config',
  'parse_volume_id',
  'sensitive_properties',
  'storage_has_feature',
];

/** What makes no sense for archives. */
const refused = [
  'alloc_image',
  'clone_image',
  'create_base',
  'filesystem_path',
  'find_free_diskname',
  'get_volume_notes',
  'map_volume',
  'qemu_blockdev_options',
  'rename_snapshot',
  'rename_volume',
  'update_volume_notes',
  'volume_export',
  'volume_import',
  'volume_qemu_snapshot_method',
  'volume_resize',
  'volume_rollback_is_possible',
  'volume_snapshot',
  'volume_snapshot_delete',
  'volume_snapshot_info',
  'volume_snapshot_rollback',
];

interface Answer {
  readonly methods: Readonly<Record<string, string>>;
  readonly base: readonly string[];
  readonly warnings: readonly string[];
}

const combinations = [11, 12, 13, 14, 15, 99].flatMap((apiver) =>
  [false, true].flatMap((taint) =>
    ['worker', 'child'].map((process) => ({
      apiver,
      taint,
      process,
      title: `${apiver}${taint ? ' -T' : ''} ${process}`,
    })),
  ),
);

let directory: string;
const answers = new Map<string, Answer>();

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'matrix-'));
  await cp('dist/providers', directory, { recursive: true });
});
afterAll(() => rm(directory, { recursive: true }));

/** A process of its own, with a host that answers well. */
async function callAll(apiver: number, taint: boolean, process: string): Promise<Answer> {
  const options = { node: '/usr/bin/perl', host: 'fixtures/hosts/misbehave.pl' };
  const node = await PveNode.create({ ...options, providers: directory, apiver });
  try {
    const path = join(node.root, 'store');
    await mkdir(path);
    await node.addStorage('vault', 'bridge-dir', { path, content: 'backup' });
    const age = apiver === 99 ? ['--apiage', '90'] : [];
    const args = [...age, '--process', process];
    const program = '../../../test/e2e/support/matrix.pl';
    const { exitCode, stdout, all } = await node.run(program, args, { taint });
    expect(exitCode, all).toBe(0);
    return JSON.parse(stdout) as Answer;
  } finally {
    await node.destroy();
  }
}

test.each(combinations)('D1, A1, A5: all methods, API version $title', async (combination) => {
  const { apiver, taint, process, title } = combination;
  const answer = await callAll(apiver, taint, process);
  answers.set(title, answer);
  const of = (wanted: (outcome: string) => boolean) =>
    Object.keys(answer.methods).filter((name) => wanted(answer.methods[name] ?? ''));

  expect(Object.entries(answer.methods).filter(([, outcome]) => /^BROKEN/.test(outcome))).toEqual(
    [],
  );
  expect(of((outcome) => outcome.startsWith('refuses')).sort()).toEqual(
    refused.map((name) => `storage ${name}`),
  );
  for (const name of refused) {
    expect(answer.methods[`storage ${name}`]).toBe(
      `refuses: storage type 'bridge-dir' keeps archives only: no ${name}`,
    );
  }
  expect(of((outcome) => outcome === 'works').length).toBeGreaterThan(50);
  const undecided = answer.base.filter(
    (name) => !functions.includes(name) && !(`storage ${name}` in answer.methods),
  );
  expect(undecided, 'methods of the base class that no call was made of').toEqual([]);
  expect('storage get_formats' in answer.methods).toBe(apiver >= 12);
  for (const warning of answer.warnings) {
    expect(warning).toMatch(/ is implementing an older storage API, an upgrade is recommended$/m);
  }
  expect(answer.warnings.length === 0).toBe(apiver < 99);
});

test('the table', () => {
  const titles = combinations.map(({ title }) => title);
  const names = new Set([...answers.values()].flatMap(({ methods }) => Object.keys(methods)));
  const mark = (outcome?: string) =>
    outcome === undefined
      ? ' '
      : ({ works: '+', 'refuses:': '-' }[outcome.split(' ')[0] ?? ''] ?? '!');
  const isStorage = (name: string) => Number(name.startsWith('storage'));
  const order = (a: string, b: string) => isStorage(b) - isStorage(a) || (a < b ? -1 : 1);
  const rows = [...names].sort(order).map((name) => {
    const cells = titles.map((title) => mark(answers.get(title)?.methods[name]));
    return `${name.padEnd(48)} ${cells.join('  ')}`;
  });
  const columns = titles.map((title, index) => `${String(index + 1).padStart(4)}: ${title}`);
  const legend = '+ works   - refuses in one line   ! broken   blank: not on such a node';
  console.log([legend, ...columns, ...rows].join('\n'));
  expect(answers.size).toBe(combinations.length);
  expect(rows.length).toBeGreaterThan(70);
  expect(rows.filter((row) => row.includes('!'))).toEqual([]);
});
