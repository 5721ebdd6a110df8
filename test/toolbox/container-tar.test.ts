import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { scanTree } from '../../src/toolbox/container-scan.ts';
import { openNamespaces } from '../../src/toolbox/namespaces.ts';
import {
  container,
  memberOf,
  namesOf,
  openTree,
  readTar,
  warningsOf,
} from './support/container-tree.ts';

const files = `
  mkdir -p tmp/sub var/tmp var/run/deep home/user/cache './-dash dir' 'a [b]' deep/lost+found lost+found
  touch tmp/x tmp/sub/y var/tmp/z var/run/a.pid var/run/deep/b.pid var/run/.pid home/user/cache/c \\
    home/user/x.tmp -- -dash './-dash dir/e' 'a [b]/f' deep/lost+found/g 'a*b' 'a b' 'back\\slash'
`;
const all = [
  ...['./', './-dash', './-dash dir/', './-dash dir/e', './a [b]/', './a [b]/f', './a b', './a*b'],
  ...['./back\\\\slash', './deep/', './home/', './home/user/', './home/user/cache/'],
  ...['./home/user/cache/c', './home/user/x.tmp', './tmp/', './tmp/sub/', './tmp/sub/y', './tmp/x'],
  ...['./var/', './var/run/', './var/run/.pid', './var/run/a.pid', './var/run/deep/'],
  ...['./var/run/deep/b.pid', './var/tmp/', './var/tmp/z'],
];

/** Patterns, and what is missing then: what PVE passes always, both kinds of anchors, and the odd ones. */
const excludes: [patterns: string[], missing: string[]][] = [
  [[], []],
  [
    ['/tmp/?*', '/var/tmp/?*', '/var/run/?*.pid'],
    [
      './tmp/sub/',
      './tmp/sub/y',
      './tmp/x',
      './var/tmp/z',
      './var/run/a.pid',
      './var/run/deep/b.pid',
    ],
  ],
  [['/tmp'], ['./tmp/', './tmp/sub/', './tmp/sub/y', './tmp/x']],
  [['tmp'], ['./tmp/', './tmp/sub/', './tmp/sub/y', './tmp/x', './var/tmp/', './var/tmp/z']],
  [['cache'], ['./home/user/cache/', './home/user/cache/c']],
  [['/cache'], []],
  [['user/cache'], ['./home/user/cache/', './home/user/cache/c']],
  [['*.tmp'], ['./home/user/x.tmp']],
  [['/home/**/c'], ['./home/user/cache/c']],
  [['/home/*/c'], ['./home/user/cache/c']],
  [['**/c'], ['./home/user/cache/c']],
  [
    ['/var/run/*'],
    ['./var/run/.pid', './var/run/a.pid', './var/run/deep/', './var/run/deep/b.pid'],
  ],
  [['/tmp/'], []],
  [['-dash'], ['./-dash']],
  [['/-dash dir'], ['./-dash dir/', './-dash dir/e']],
  [['a b'], ['./a b']],
  [['a*b'], ['./a b', './a*b']],
  [['a\\*b'], ['./a*b']],
  [['a [b]'], ['./a b']],
  [['a \\[b]'], ['./a [b]/', './a [b]/f']],
  [['[xz]'], ['./tmp/x', './var/tmp/z']],
  [['no-such'], []],
];

describe('what the tar of a container holds', () => {
  test('B9: exclude patterns mean what vzdump means, and find counts the same', async () => {
    const caller = await container().fill(files).giveAway().start();
    const tree = await openTree(caller);
    const namespaces = await openNamespaces(caller.identity);
    for (const [exclude, missing] of excludes) {
      const { data, totals } = await readTar(tree, { exclude });
      const expected = all.filter((name) => !missing.includes(name)).sort();
      expect(namesOf(data), exclude.join(' ')).toEqual(expected);
      expect(totals).toEqual({ entries: expected.length, bytes: data.length });
      const source = { namespaces, directory: tree.directory, sources: ['./'], log: tree.log };
      const { signal } = new AbortController();
      const found = await scanTree(source, { exclude, capabilities: ['dac_read_search'], signal });
      expect(found.entries, exclude.join(' ')).toBe(expected.length);
    }
    await namespaces.close();
    expect(warningsOf(tree.log)).toEqual([
      "warn: the exclude pattern '/tmp/' matches nothing, since it ends with a slash",
    ]);
  });

  test("B9: a lost+found of the host's root is left out", async () => {
    const caller = container().fill('touch file').giveAway();
    caller.fill('mkdir -m 700 lost+found');
    const { data } = await readTar(await openTree(await caller.start()));
    expect(namesOf(data)).toEqual(['./', './file']);
  });

  test('B8: sources are mount points, whatever they are called', async () => {
    const names = ['mnt/a', 'mnt/b c', 'mnt/new\\nline', 'mnt/*', 'mnt/--help'];
    const mounts = names.map(
      (name, at) => `mount -t tmpfs none "$2/${name}"; echo ${at} >"$2/${name}/file"`,
    );
    const quoted = names.map((name) => `'${name}'`).join(' ');
    const caller = await container()
      .fill(`mkdir -p -- ${quoted}`)
      .giveAway()
      .start(mounts.join('\n'));
    const tree = await openTree(caller, { sources: ['./', ...names.map((name) => `./${name}`)] });
    const { data } = await readTar(tree);
    const content = names.map((_, at) => String(at)).join('\n');
    expect(execFileSync('tar', ['-xOf', '-'], { input: data }).toString().trim()).toBe(content);
    const dot = await readTar(await openTree(caller, { sources: ['.'] }));
    expect(namesOf(dot.data)).toContain('./mnt/');
    expect(namesOf(dot.data)).not.toContain('./mnt/a/file');
    await expect(openTree(caller, { sources: ['./', '--checkpoint=1'] })).rejects.toThrow(
      "mount point '--checkpoint=1' does not begin with ./",
    );
  });

  test('odd names neither confuse the count nor forge messages', async () => {
    const names = [
      ...['-v', '--help', 'a"b', "it's", 'tar: x', 'Total bytes written: 7 (x)', ' ', '\x1b[31m'],
      ...['new\nline', 'x\n./y', 'x\nTotal bytes written: 9 (9, 9)', 'ü€'],
    ];
    const caller = container().fill(
      `mkdir $'x\\ntar: .' $'x\\n.'; mkdir $'x\\ntar: ./forged'
      touch $'x\\ntar: ./forged/y: file changed as we read it' $'\\xff\\xfe'`,
    );
    for (const name of names) writeFileSync(join(caller.root, name), name);
    const tree = await openTree(await caller.giveAway().start());
    const { data, totals } = await readTar(tree);
    expect(totals).toEqual({ entries: names.length + 6, bytes: data.length });
    expect(namesOf(data)).toHaveLength(names.length + 6);
    for (const name of names) expect(memberOf(data, `./${name}`).toString()).toBe(name);
    expect(warningsOf(tree.log)).toEqual([]);
  });

  test.each([
    ['mkdir sbin; touch {1..8}', []],
    ['ln -s usr/sbin sbin; touch {1..8}', []],
    ['mkdir sbin; touch {1..7}', ['fewer than ten files']],
    ['mkdir usr usr/sbin; touch sbin {1..8}', ['the container has no /sbin']],
    ['touch x', ['the container has no /sbin', 'fewer than ten files']],
  ])('C7: what PVE will refuse is said: %s', async (script, expected) => {
    const tree = await openTree(await container().fill(script).giveAway().start());
    await readTar(tree);
    expect(tree.log.lines.filter((line) => line.startsWith('warn'))).toEqual(
      expected.map((text) => `warn: ${text}: PVE will refuse to restore it`),
    );
  });

  test('C7: device nodes outside ./dev are in it, and named', async () => {
    const caller = container();
    caller.fill(`mkdir dev srv; mknod dev/null c 1 3; mknod srv/block b 7 99; mkfifo srv/fifo
      for i in {1..12}; do mknod srv/c$i c 1 3; done; mkdir skip; mknod skip/x c 1 3
      mkdir -m 700 home; chown 1000 home; mknod home/whiteout c 0 0; mknod $'srv/x\\n' c 1 3`);
    const tree = await openTree(await caller.giveAway().start());
    const { data } = await readTar(tree, { exclude: ['/skip'] });
    expect(namesOf(data)).toContain('./srv/block');
    const warnings = warningsOf(tree.log);
    expect(warnings).toHaveLength(11);
    expect(warnings[0]).toMatch(/\.\/srv\/\w+ is a device node: it is in the archive, but cannot/);
    expect(warnings[10]).toBe('warn: and 4 more device nodes outside ./dev');
    expect(warnings.join()).not.toMatch(/skip|dev\/null|whiteout/);
    expect(namesOf(data)).toContain('./home/whiteout');
  });
});
