import { defineConfig } from 'vitest/config';

/** How long a poll takes is part of what they test. */
const polls = 'test/e2e/polls*.test.ts';

/** `unit` runs in seconds; `system` starts QEMU, Perl and mounts; `polls` wants the machine to itself. */
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
          exclude: [polls],
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
      {
        test: {
          name: 'polls',
          include: [polls],
          poolOptions: { forks: { singleFork: true } },
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});
