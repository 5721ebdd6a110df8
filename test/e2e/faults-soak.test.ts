import { execa } from 'execa';
import { describe, expect, test } from 'vitest';

const soak = (...args: string[]) =>
  execa('node_modules/.bin/tsx', ['test/soak/main.ts', ...args], { reject: false });

describe('npm run soak', () => {
  test('A3, A6, B15: kills at random moments harm no archive and leave nothing', async () => {
    const { exitCode, stdout, stderr } = await soak('vm-backup', '--kills', '4', '--json');
    expect(exitCode, stderr).toBe(0);
    expect(JSON.parse(stdout)).toEqual({ kills: 4, harmed: 0, left: 0 });
  });

  test.each([
    [['tea']],
    [[]],
    [['vm-backup', '--nights', '3']],
    [['vm-backup', '--kills', 'many']],
    [['vm-backup', '--kills', '0']],
  ])('%j is no soak', async (args) => {
    const { exitCode, stderr, stdout } = await soak(...args);
    expect(exitCode).toBe(2);
    expect(stderr).toContain('usage: npm run soak');
    expect(stdout).toBe('');
  });
});
