import { parseArgs } from 'node:util';
import { callRow, startRow } from './calls.ts';
import { containerRow } from './container.ts';
import type { Result, Row } from './measure.ts';
import { memoryRow } from './memory.ts';
import { pollRow } from './polls.ts';
import { restoreRow } from './restore.ts';
import { fullRow, incrementalRow } from './vm-backup.ts';

const rows: readonly Row[] = [
  callRow,
  startRow,
  fullRow('none'),
  fullRow('brotli'),
  incrementalRow,
  restoreRow,
  containerRow,
  memoryRow,
  pollRow,
];

const usage = `usage: npm run bench -- [--json] [ROW…]

Measures the bridge side by side with the plain tool that does the same work, at least five times in turn
after a warm-up, and prints medians and their ratio (above 1: ours is better). Rows:
${rows.map(({ name, opponent }) => `  ${name.padEnd(14)} against ${opponent}`).join('\n')}
`;

function printed({ row, ours, theirs, unit, ratio, target, met }: Result): string {
  const figures = `${ours.toPrecision(4)} ${unit} ours, ${theirs.toPrecision(4)} ${unit} theirs`;
  return `${row}: ${figures}, ratio ${ratio.toFixed(2)} (target ${target}: ${met ? 'met' : 'MISSED'})`;
}

const { values, positionals } = parseArgs({
  options: { json: { type: 'boolean', default: false }, help: { type: 'boolean', default: false } },
  allowPositionals: true,
});
const unknown = positionals.filter((name) => !rows.some((row) => row.name === name));
if (values.help || unknown.length > 0) {
  console.log(usage);
  process.exit(values.help ? 0 : 2);
}
const results: Result[] = [];
for (const row of rows) {
  if (positionals.length > 0 && !positionals.includes(row.name)) continue;
  for (const result of await row.run()) {
    results.push(result);
    if (!values.json) console.log(printed(result));
  }
}
if (values.json) console.log(JSON.stringify(results, null, 2));
