import { execa } from 'execa';
import { expect, test } from 'vitest';

test('kills of removals and prunings harm no archive and leave nothing', async () => {
  const { exitCode, stdout, stderr } = await execa(
    'node_modules/.bin/tsx',
    ['test/soak/main.ts', 'removal', '--kills', '6', '--json'],
    { reject: false },
  );
  expect(exitCode, stderr).toBe(0);
  expect(JSON.parse(stdout)).toEqual({ kills: 6, harmed: 0, left: 0 });
});
