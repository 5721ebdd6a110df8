import * as tar from './tar-archive.ts';

const { container, member, pax, long, block } = tar;

export const file = (name: string, traits: Partial<tar.HeaderFields> = {}) =>
  member({ name, ...traits }, 'x');
export const sparseBody = Buffer.concat([
  tar.pad(Buffer.from('1\n0\n512\n')),
  Buffer.alloc(block, 'd'),
]);
export const sparse1 = (...more: [string, string][]) =>
  pax([
    ['GNU.sparse.major', '1'],
    ['GNU.sparse.minor', '0'],
    ['GNU.sparse.realsize', '1024'],
    ...more,
  ]);
const sparse0 = (map: string, blocks: string, ...more: [string, string][]) =>
  pax([
    ['GNU.sparse.size', '1024'],
    ['GNU.sparse.numblocks', blocks],
    ['GNU.sparse.map', map],
    ...more,
  ]);
/** Header of an old sparse file with these pieces. */
const oldSparse = (pieces: [number, number][], size: number, goesOn = 0) =>
  tar.header({
    name: './sparse',
    type: 'S',
    magic: tar.gnu,
    size,
    patches: [
      ...pieces.map(([offset, length], at): [number, string] => [
        386 + 24 * at,
        tar.octal(offset, 12) + tar.octal(length, 12),
      ]),
      [482, Buffer.from([goesOn])],
      [483, tar.octal(1_000_000, 12)],
    ],
  });
export const data = (blocks: number) => Buffer.alloc(blocks * block, 'd');

const largestMap = '1\n9223372036854775295\n512\n';

/** What is refused, and why. */
export const hostile: [name: string, archive: Buffer, why: RegExp][] = [
  ['a name with ..', container(file('./a/../../evil')), /climbs out.*"\.\/a\/\.\.\/\.\.\/evil"/],
  ['.. alone', container(member({ name: '..', type: '5' })), /climbs out/],
  ['.. at the end', container(member({ name: './a/..', type: '5' })), /climbs out/],
  ['an absolute name', container(file('/etc/evil')), /is absolute/],
  ['.. in the prefix', container(file('evil', { prefix: './a/..' })), /climbs out/],
  ['an absolute prefix', container(file('evil', { prefix: '/a' })), /is absolute/],
  ['an empty name', container(file('')), /empty/],
  [
    'a hard link out',
    container(member({ name: './l', type: '1', linkName: '../../etc/shadow' })),
    /link target climbs/,
  ],
  [
    'an absolute hard link',
    container(member({ name: './l', type: '1', linkName: '/etc/shadow' })),
    /link target is absolute/,
  ],
  ['a hard link to nothing', container(member({ name: './l', type: '1' })), /target is empty/],
  ['a pax path', container(pax([['path', '../evil']]), file('./ok')), /climbs out/],
  [
    'a pax linkpath',
    container(
      pax([['linkpath', '../evil']]),
      member({ name: './l', type: '1', linkName: './etc/f1' }),
    ),
    /link target climbs/,
  ],
  ['a long name', container(long('L', '../evil'), file('./ok', { magic: tar.gnu })), /climbs out/],
  [
    'a long link',
    container(
      long('K', '/etc/shadow'),
      member({ name: './l', type: '1', linkName: './etc/f1', magic: tar.gnu }),
    ),
    /link target is absolute/,
  ],
  [
    'a sparse name, 1.0',
    container(sparse1(['GNU.sparse.name', '../evil']), member({ name: './ok' }, sparseBody)),
    /climbs out/,
  ],
  [
    'a sparse name, 0.1',
    container(
      sparse0('0,512', '1', ['GNU.sparse.name', '/evil']),
      member({ name: './ok' }, data(1)),
    ),
    /is absolute/,
  ],
  [
    'a sparse name beside a path',
    container(
      sparse1(['GNU.sparse.name', '../evil'], ['path', './ok']),
      member({ name: './ok' }, sparseBody),
    ),
    /climbs out/,
  ],
  [
    'a sparse name of a file that is not sparse',
    container(pax([['GNU.sparse.name', '../evil']]), file('./ok')),
    /map/,
  ],
  ['a global path', container(pax([['path', '../evil']], 'g')), /global .* sets path/],
  ['a global size', container(pax([['size', '0']], 'g')), /global .* sets size/],
  [
    'a global xattr with a line end in its name',
    container(pax([['SCHILY.xattr.user.a\nb', 'x']], 'g')),
    /global .* sets SCHILY/,
  ],
  [
    'a sparse file beyond 2^63',
    container(
      sparse1(['GNU.sparse.name', './s']),
      member({ name: './ok' }, tar.pad(Buffer.from('1\n9223372036854775808\n512\n'))),
    ),
    /number/,
  ],
  ['a global linkpath', container(pax([['linkpath', '/x']], 'g')), /global .* sets linkpath/],
  [
    'two pax paths',
    container(
      pax([
        ['path', './a'],
        ['path', './b'],
      ]),
      file('./ok'),
    ),
    /path twice/,
  ],
  [
    'two pax headers',
    container(pax([['path', './a']]), pax([['path', './b']]), file('./ok')),
    /two/,
  ],
  [
    'a long name and a pax path',
    container(long('L', './a'), pax([['path', './b']]), file('./c')),
    /two formats/,
  ],
  ['a NUL in a pax path', container(pax([['path', './a\0/../../b']]), file('./ok')), /NUL/],
  [
    'a NUL in a long name',
    container(member({ name: 'x', type: 'L', magic: tar.gnu }, './a\0\n../b\0'), file('./ok')),
    /length/,
  ],
  [
    'a long name without an end',
    container(
      Buffer.concat([
        tar.header({ name: 'x', type: 'L', magic: tar.gnu, size: 3 }),
        Buffer.from('./a/../../evil'.padEnd(block, '\0')),
      ]),
      file('./ok'),
    ),
    /length/,
  ],
  ['an empty long name', container(member({ name: 'x', type: 'L' }), file('./ok')), /is empty/],
  [
    'a pax header cut short',
    container(member({ name: 'x', type: 'x' }, '99 path=./a\n'), file('./ok')),
    /malformed/,
  ],
  [
    'a pax header with blanks',
    container(member({ name: 'x', type: 'x' }, '13  path=./a\n'), file('./ok')),
    /malformed/,
  ],
  [
    'a pax header with a tail',
    container(member({ name: 'x', type: 'x' }, '12 path=./a\n\0\0'), file('./ok')),
    /malformed/,
  ],
  [
    'an extended header at the end',
    Buffer.concat([container().subarray(0, -2 * block), pax([['path', 'x']]), tar.end]),
    /has no member/,
  ],
  [
    'another size in the pax header',
    container(pax([['size', '1024']]), member({ name: './ok' }, data(1))),
    /two sizes/,
  ],
  [
    'a directory with a body',
    container(member({ name: './d/', type: '5' }, data(1))),
    /has a body/,
  ],
  ['an old directory with a body', container(member({ name: './d/' }, data(1))), /has a body/],
  [
    'a hard link with a body',
    container(member({ name: './l', type: '1', linkName: './etc/f1' }, data(1))),
    /has a body/,
  ],
  [
    'a symbolic link with a pax size',
    container(pax([['size', '512']]), member({ name: './l', type: '2', linkName: 'x' }), data(1)),
    /has a body/,
  ],
  ['a device with a body', container(member({ name: './n', type: '3' }, data(1))), /has a body/],
  [
    'a negative size',
    container(file('./ok', { sizeField: Buffer.alloc(12, 0xff) })),
    /size .* no number/,
  ],
  [
    'a size beyond all numbers',
    container(file('./ok', { sizeField: Buffer.from('80ffffffffffffffffffffff', 'hex') })),
    /size .* no number/,
  ],
  [
    'a size with letters',
    container(file('./ok', { sizeField: Buffer.from('00000000001z') })),
    /size .* no number/,
  ],
  [
    'a size in base 64',
    container(file('./ok', { sizeField: Buffer.from('+AB         ') })),
    /size .* no number/,
  ],
  ['a volume that goes on', container(file('./ok', { type: 'M', magic: tar.gnu })), /type "M"/],
  ['an incremental directory', container(file('./ok/', { type: 'D', magic: tar.gnu })), /type "D"/],
  ['an unknown type', container(file('./ok', { type: 'Q' })), /type "Q"/],
  ['a dumpdir keyword', container(pax([['GNU.dumpdir', 'Yx']]), file('./ok')), /GNU\.dumpdir/],
  [
    'a sparse map beyond its data',
    container(
      sparse1(['GNU.sparse.name', './s']),
      member({ name: './ok' }, sparseBody.subarray(0, block)),
    ),
    /map/,
  ],
  [
    'a sparse map short of its data',
    container(
      sparse1(['GNU.sparse.name', './s']),
      member({ name: './ok' }, Buffer.concat([sparseBody, data(1)])),
    ),
    /map/,
  ],
  [
    'a sparse map without an end',
    container(sparse1(['GNU.sparse.name', './s']), member({ name: './ok' }, '9\n0\n512\n')),
    /map/,
  ],
  [
    'a sparse map with letters',
    container(
      sparse1(['GNU.sparse.name', './s']),
      member({ name: './ok' }, tar.pad(Buffer.from('x\n'))),
    ),
    /number/,
  ],
  [
    'more sparse pieces than counted',
    container(sparse0('0,512,512,512', '1'), member({ name: './s' }, data(2))),
    /map/,
  ],
  [
    'a sparse piece within a block',
    container(sparse0('0,100,512,412', '2'), member({ name: './s' }, data(1))),
    /map/,
  ],
  [
    'sparse pieces that overlap',
    container(sparse0('512,512,0,512', '2'), member({ name: './s' }, data(2))),
    /map/,
  ],
  [
    'a sparse symbolic link',
    container(
      sparse1(['GNU.sparse.name', './s']),
      member({ name: './s', type: '2', linkName: 'x' }),
    ),
    /read differently/,
  ],
  [
    'pax sparseness with another magic',
    container(
      sparse1(['GNU.sparse.name', './s']),
      member({ name: './s', magic: tar.gnu }, sparseBody),
    ),
    /read differently/,
  ],
  [
    'an old sparse file with another magic',
    container(member({ name: './s', type: 'S' })),
    /read differently/,
  ],
  ['an old sparse map with a gap', container(oldSparse([[0, 512]], 512, 1), data(1)), /map/],
  ['an old sparse map that disagrees', container(oldSparse([[0, 1024]], 512), data(1)), /map/],
  ['a checksum error', container(file('./ok').fill('y', 3, 4)), /checksum/],
  ['garbage between members', container(data(1)), /checksum/],
  ['a lone zero block', container(Buffer.alloc(block)), /zero block/],
  ['an archive behind the end', Buffer.concat([container(), container()]), /follows its end/],
  ['a second name behind a NUL', container(file('./ok\0\n/../../evil')), /two programs/],
  [
    'a prefix of another ustar',
    container(file('ok', { prefix: './etc', magic: 'ustar\x0099' })),
    /two programs/,
  ],
  ['a file with a link target', container(file('./ok', { linkName: './a' })), /two programs/],
  [
    'no sbin',
    Buffer.concat([...Array.from({ length: 12 }, (_, at) => file(`./${at}`)), tar.end]),
    /no sbin/,
  ],
  [
    'an sbin that is a file',
    Buffer.concat([
      file('./sbin'),
      ...Array.from({ length: 12 }, (_, at) => file(`./${at}`)),
      tar.end,
    ]),
    /no sbin/,
  ],
  [
    'few members',
    Buffer.concat([
      member({ name: './sbin/', type: '5' }),
      ...Array.from({ length: 8 }, (_, at) => file(`./${at}`)),
      tar.end,
    ]),
    /only 9 members/,
  ],
  ['nothing', Buffer.alloc(0), /is empty/],
  ['only an end', tar.end, /no sbin/],
];

/** What passes, and the device nodes in it. */
export const friendly: [name: string, archive: Buffer, devices?: string[]][] = [
  ['plain', container()],
  ['names without a dot', container(file('etc/passwd'), file('a..b'), file('./..c/d'))],
  [
    'symbolic links to anywhere',
    container(member({ name: './l', type: '2', linkName: '../../../x' })),
  ],
  ['a global comment', container(pax([['comment', 'git']], 'g'))],
  [
    'an xattr that looks like records',
    container(pax([['SCHILY.xattr.user.x', '\n11 size=99\n19 path=../../evil\n']]), file('./ok')),
  ],
  [
    'an xattr with a line end in its name',
    container(pax([['SCHILY.xattr.user.x\n19 path', '../../evil\n']]), file('./ok')),
  ],
  [
    'names in no encoding',
    container(
      pax([['path', Buffer.from('./\xff\xfe\n\xe4', 'latin1')]]),
      file('./ok'),
      file('./\xff'),
    ),
  ],
  [
    'a size in the pax header alone',
    container(pax([['size', '1']]), file('./ok', { sizeField: Buffer.from(tar.octal(0, 12)) })),
  ],
  [
    'sparse 1.0',
    container(sparse1(['GNU.sparse.name', './s']), member({ name: './ok' }, sparseBody)),
  ],
  [
    'sparse 0.1',
    container(
      sparse0('0,512,1024,0', '2', ['GNU.sparse.name', './s']),
      member({ name: './ok' }, data(1)),
    ),
  ],
  [
    'old sparse',
    container(
      oldSparse(
        [
          [512, 512],
          [4096, 100],
        ],
        612,
      ),
      data(2),
    ),
  ],
  [
    'sparse up to 2^63, 1.0',
    container(
      pax([
        ['GNU.sparse.major', '1'],
        ['GNU.sparse.minor', '0'],
        ['GNU.sparse.name', './s'],
        ['GNU.sparse.realsize', '9223372036854775807'],
      ]),
      member({ name: './ok' }, Buffer.concat([tar.pad(Buffer.from(largestMap)), data(1)])),
    ),
  ],
  [
    'sparse up to 2^63, 0.1',
    container(
      pax([
        ['GNU.sparse.size', '9223372036854775807'],
        ['GNU.sparse.numblocks', '1'],
        ['GNU.sparse.map', '9223372036854775295,512'],
      ]),
      member({ name: './s' }, data(1)),
    ),
  ],
  [
    'old sparse up to 2^63',
    container(
      tar.header({
        name: './sparse',
        type: 'S',
        magic: tar.gnu,
        size: 512,
        patches: [
          [386, Buffer.from('800000007ffffffffffffdff', 'hex')],
          [398, tar.octal(512, 12)],
          [483, Buffer.from('800000007fffffffffffffff', 'hex')],
        ],
      }),
      data(1),
    ),
  ],
  [
    'device nodes',
    container(
      member({ name: './dev/null', type: '3' }),
      member({ name: './x/loop', type: '4' }),
      member({ name: 'dev/zero', type: '3' }),
      member({ name: './hard', type: '1', linkName: 'dev/null' }),
      member({ name: './other', type: '1', linkName: './etc/f5' }),
    ),
    ['./x/loop', 'dev/zero', './hard'],
  ],
  [
    'whiteouts, but no links into ./dev and no block devices',
    container(
      node('./a', '3', '0000000\0', '0000000\0'),
      member({ name: './b', type: '1', linkName: './a' }),
      node('./dev/a', '3', '0000000\0', '0000000\0'),
      member({ name: './c', type: '1', linkName: './dev/a' }),
      node('./block', '4', '0000000\0', '0000000\0'),
      node('./major', '3', '0000001\0', '0000000\0'),
      node('./minor', '3', '0000000\0', '0000001\0'),
    ),
    ['./c', './block', './major', './minor'],
  ],
];

function node(name: string, type: '3' | '4', major: string, minor: string): Buffer {
  return member({
    name,
    type,
    patches: [
      [329, major],
      [337, minor],
    ],
  });
}
