/** Ext4 makes it, and nobody but the host's root may read it: not even a container's root [B9]. */
const always = ['lost+found'];

const isAnchored = (pattern: string) => pattern.startsWith('/');

/** GNU tar's options for patterns in vzdump's meaning: from the root with a leading `/`, else at any depth. */
export function tarExcludes(patterns: readonly string[]): string[] {
  const floating = patterns.filter((pattern) => !isAnchored(pattern));
  const anchored = patterns.filter(isAnchored);
  return [
    '--no-anchored',
    ...[...always, ...floating].map((pattern) => `--exclude=${pattern}`),
    '--anchored',
    ...anchored.map((pattern) => `--exclude=.${pattern}`),
  ];
}

/** The same as a condition of find(1), true for what tar leaves out. */
export function findExcludes(patterns: readonly string[]): string[] {
  const paths = [...always, ...patterns].flatMap((pattern) =>
    isAnchored(pattern) ? [`.${pattern}`] : [pattern, `*/${pattern}`],
  );
  return ['(', ...paths.flatMap((path, at) => [...(at === 0 ? [] : ['-o']), '-path', path]), ')'];
}

/** Patterns that match nothing, in vzdump's own tar backups too. */
export function uselessExcludes(patterns: readonly string[]): string[] {
  return patterns.filter((pattern) => pattern.endsWith('/'));
}
