import { readdir, readFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { expect, test } from 'vitest';

/** Which rooms of src/ a room may import from, besides itself. */
const allowed: Record<string, readonly string[]> = {
  protocol: [],
  rpc: ['protocol/errors', 'protocol/version'],
  sdk: ['protocol'],
  nbd: ['protocol/errors'],
  toolbox: ['nbd', 'sdk', 'protocol/errors', 'protocol/model'],
  providers: ['sdk', 'nbd', 'toolbox', 'protocol/errors', 'protocol/model'],
  host: ['protocol', 'rpc', 'sdk', 'toolbox', 'providers'],
  cli: ['protocol', 'rpc', 'sdk', 'nbd', 'toolbox', 'providers'],
};
/** Packages that only these rooms may use. */
const packageHomes: Record<string, readonly string[]> = {
  execa: ['toolbox'],
  'json-rpc-2.0': ['rpc'],
  pino: ['host'],
};

interface Import {
  readonly file: string;
  readonly target: string;
}

async function importsOfSrc(): Promise<Import[]> {
  const files = await readdir('src', { recursive: true });
  const imports: Import[] = [];
  for (const file of files.filter((name) => name.endsWith('.ts'))) {
    const text = await readFile(join('src', file), 'utf8');
    for (const [, target = ''] of text.matchAll(/(?:from|import\()\s*'([^']+)'/g)) {
      imports.push({ file, target });
    }
  }
  return imports;
}

const room = (file: string) => file.split('/')[0] ?? '';

test('every room imports only from the rooms that the design names', async () => {
  const wrong = (await importsOfSrc()).flatMap(({ file, target }) => {
    if (!target.startsWith('.')) return [];
    const path = relative('src', join('src', dirname(file), target)).replace(/\.ts$/, '');
    const rules = allowed[room(file)] ?? [];
    const fits =
      room(path) === room(file) || rules.some((r) => path === r || path.startsWith(`${r}/`));
    return fits ? [] : [`${file} imports ${path}`];
  });
  expect(wrong).toEqual([]);
});

test('only the composition root knows the providers', async () => {
  const importers = (await importsOfSrc())
    .filter(({ file, target }) => room(file) !== 'providers' && target.includes('/providers/'))
    .map(({ file }) => file);
  expect(importers).toEqual(['host/serve.ts']);
});

test('each package has its home', async () => {
  const strangers = (await importsOfSrc()).flatMap(({ file, target }) => {
    const homes = packageHomes[target];
    return homes === undefined || homes.includes(room(file)) ? [] : [`${file} imports ${target}`];
  });
  expect(strangers).toEqual([]);
});
