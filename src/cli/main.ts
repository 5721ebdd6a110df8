import { messageOf } from '../protocol/errors.ts';
import { type Command, exitStatus, UsageError } from './command.ts';
import { verifyCommand } from './verify.ts';

const commands: ReadonlyMap<string, Command> = new Map([['verify', verifyCommand]]);

const usage = `usage: pve-backup-bridge COMMAND, one of: ${[...commands.keys()].join(', ')}
'pve-backup-bridge COMMAND --help' tells more`;

async function main([name, ...args]: readonly string[]): Promise<number> {
  if (name === '--help') {
    console.log(usage);
    return exitStatus.good;
  }
  const command = commands.get(name ?? '');
  try {
    if (command !== undefined) return await command.run(args);
    throw new UsageError(name === undefined ? 'no command was named' : `no command '${name}'`);
  } catch (error) {
    console.error(`pve-backup-bridge: ${messageOf(error)}`);
    if (error instanceof UsageError) console.error((command?.usage ?? usage).trimEnd());
    return exitStatus.cannotRun;
  }
}

process.exitCode = await main(process.argv.slice(2));
