import { mkdir, readFile } from 'node:fs/promises';
import { execa } from 'execa';

/** One after the other, so that tests that time something have the machine to themselves. */
const projects = ['unit', 'system', 'alone'];

interface Report {
  numPassedTests: number;
  numFailedTests: number;
  numPendingTests: number;
  success: boolean;
}

await mkdir('.cache', { recursive: true });
let passed = 0;
let failed = 0;
let success = true;
for (const project of projects) {
  const outputFile = `.cache/test-${project}.json`;
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${outputFile}`];
  const { exitCode } = await execa('vitest', ['run', '--project', project, ...reporters], {
    stdio: 'inherit',
    reject: false,
    preferLocal: true,
  });
  const report: Report = JSON.parse(await readFile(outputFile, 'utf8'));
  passed += report.numPassedTests;
  // A skipped test is one that was not run: it counts as failed.
  failed += report.numFailedTests + report.numPendingTests;
  success &&= exitCode === 0 && report.success;
}
console.log(`Tests: ${passed} passed, ${failed} failed`);
process.exitCode = success && failed === 0 ? 0 : 1;
