import { readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { protocolVersion } from '../protocol/version.ts';

/** Says hello before anything else is loaded: the shim learns at once with whom it speaks. */
const { values, positionals } = parseArgs({
  options: { root: { type: 'string', default: '' } },
  allowPositionals: true,
});
const directory = positionals[0];
if (directory === undefined) {
  process.stderr.write('usage: host.mjs [--root DIR] PROVIDER_DIR\n');
  process.exit(2);
}
const manifest = JSON.parse(readFileSync(join(directory, 'provider.json'), 'utf8'));
const hello = { protocol: protocolVersion, provider: manifest.type, version: manifest.version };
writeSync(1, `${JSON.stringify({ jsonrpc: '2.0', method: 'hello', params: hello })}\n`);

const { serve } = await import('./serve.ts');
await serve({ root: values.root, directory, type: manifest.type });
