import { defineConfig } from 'vitest/config';

/** These test how long a poll takes, and what is left of mounts, which others' mount namespaces would copy. */
const sensitive = ['polls*', 'faults-restore', 'file-handle-faults'].map(
  (name) => `test/e2e/${name}.test.ts`,
);

/** `unit` runs in seconds; `system` starts QEMU, Perl and mounts; `alone` wants the machine to itself. */
export default defineConfig({
  test: {
    // Most of what takes long is waiting, so that two processors keep up with three.
    poolOptions: { forks: { minForks: 3, maxForks: 3 } },
    projects: [
      {
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: ['test/e2e/**', 'test/fixtures/**'],
          testTimeout: 20_000,
        },
      },
      {
        test: {
          name: 'system',
          include: ['test/e2e/**/*.test.ts', 'test/fixtures/**/*.test.ts'],
          exclude: sensitive,
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
      {
        test: {
          name: 'alone',
          include: sensitive,
          poolOptions: { forks: { singleFork: true } },
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});
