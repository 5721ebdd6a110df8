import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { build } from 'esbuild';
import { openrpcDocument } from '../src/protocol/openrpc.ts';
import directory from '../src/providers/directory/index.ts';
import { manifestOf } from '../src/sdk/manifest.ts';

const json = (value: unknown) => `${JSON.stringify(value, null, 2)}\n`;

// Put in place as a whole: hosts may be started meanwhile.
const draft = `.cache/dist.${process.pid}`;
await mkdir(draft, { recursive: true });
await build({
  entryPoints: { host: 'src/host/main.ts', cli: 'src/cli/main.ts' },
  outdir: draft,
  outExtension: { '.js': '.mjs' },
  bundle: true,
  platform: 'node',
  format: 'esm',
  target: 'node18.19',
  legalComments: 'none',
  logLevel: 'warning',
  // Packages that are CommonJS ask for Node's own modules with require.
  banner: {
    js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);",
  },
});
for (const definition of [directory]) {
  const folder = `${draft}/providers/${definition.type}`;
  await mkdir(folder, { recursive: true });
  await writeFile(`${folder}/provider.json`, json(manifestOf(definition)));
}
await writeFile(`${draft}/openrpc.json`, json(openrpcDocument()));
await rm('dist', { recursive: true, force: true });
await rename(draft, 'dist');
