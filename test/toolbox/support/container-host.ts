import { openContainerTree } from '../../../src/toolbox/container-tree.ts';
import { LogLines } from './log.ts';

/** Starts a tar that nobody reads and a program that needs no pipe, as a host would that gets killed then. */
const [directory = '', pid, startTime, ...through] = process.argv.slice(2);
const tree = await openContainerTree({
  caller: { pid: Number(pid), startTime: Number(startTime) },
  directory,
  sources: ['./'],
  userId: 0,
  log: new LogLines(),
  signal: new AbortController().signal,
});
const [program, ...args] = through;
await tree.tar(program === undefined ? {} : { through: [program, ...args] });
await tree.exec(['sleep', '73']);
process.stdout.write('started\n');
setInterval(() => undefined, 1000);
