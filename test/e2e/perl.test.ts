import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import { describe, expect, test } from 'vitest';

const directory = fileURLToPath(new URL('../perl/', import.meta.url));
const files = readdirSync(directory).filter((name) => name.endsWith('.t'));

/** vzdump and the daemons run with -T, pvesm and qmrestore without: the same code must work in both [A1]. */
describe.each([['-T'], ['-w']])('A1: perl %s', (flag) => {
  test.each(files)('%s', async (file) => {
    const { all, exitCode, stdout } = await execa('perl', [flag, directory + file], {
      all: true,
      reject: false,
    });
    const planned = Number(/^1\.\.(\d+)$/m.exec(stdout)?.[1]);
    const passed = stdout.match(/^ok \d+/gm)?.length;
    expect(exitCode, all).toBe(0);
    expect(planned, all).toBeGreaterThan(0);
    expect(passed, all).toBe(planned);
    expect(stdout).not.toMatch(/^not ok|# (?:SKIP|TODO)/im);
  });
});
