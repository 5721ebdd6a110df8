import { parseArgs } from 'node:util';
import { seededRandom } from './random.ts';
import { soakRemoval } from './removal.ts';
import { soakVmBackup } from './vm-backup.ts';

const usage = `usage: npm run soak -- vm-backup|removal [--kills N] [--seed S] [--json]

Kills parts of VM backups, or of removals and prunings, at random moments (50 unless told) and counts archives
that came to harm and processes, mounts, sockets and files that were left. Exit status 0 only if there are none.
`;

const soaks = { 'vm-backup': soakVmBackup, removal: soakRemoval };

interface Command {
  readonly soak: (typeof soaks)[keyof typeof soaks];
  readonly kills: number;
  readonly seed: number;
  readonly json: boolean;
}

/** Undefined for a command line that makes no sense. */
function parseCommand(args: readonly string[]): Command | undefined {
  try {
    const { values, positionals } = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        kills: { type: 'string', default: '50' },
        seed: { type: 'string', default: String(Date.now() % 1_000_000) },
        json: { type: 'boolean', default: false },
      },
    });
    const numbers = [values.kills, values.seed];
    const [, soak] = Object.entries(soaks).find(([name]) => name === positionals.join()) ?? [];
    if (soak === undefined || !numbers.every((n) => /^\d{1,9}$/.test(n))) return;
    const [kills, seed] = [Number(values.kills), Number(values.seed)];
    return kills > 0 ? { soak, kills, seed, json: values.json } : undefined;
  } catch {
    return undefined;
  }
}

async function main(): Promise<number> {
  const command = parseCommand(process.argv.slice(2));
  if (command === undefined) {
    process.stderr.write(usage);
    return 2;
  }
  const { soak, kills, seed, json } = command;
  const say = (line: string) => {
    if (!json) console.log(line);
    else if (/^[A-Z]+:/.test(line)) process.stderr.write(`${line}\n`);
  };
  say(`seed ${seed}`);
  const result = await soak({ kills, random: seededRandom(seed), say });
  if (json) console.log(JSON.stringify(result));
  else console.log(`kills ${kills}, harmed ${result.harmed}, left ${result.left} (seed ${seed})`);
  return result.harmed === 0 && result.left === 0 ? 0 : 1;
}

process.exitCode = await main();
