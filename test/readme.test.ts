import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';

test('the README shows the recovery script word for word', async () => {
  const script = await readFile('fixtures/providers/directory-recovery.sh', 'utf8');
  expect(await readFile('README.md', 'utf8')).toContain(`\`\`\`sh\n${script}\`\`\``);
});

test('B19: the README names what the API makes impossible', async () => {
  const readme = (await readFile('README.md', 'utf8')).replace(/\s+/g, ' ');
  for (const limit of [
    'backup of templates',
    'live restore',
    'as a privileged one',
    'Fleecing is always on',
  ]) {
    expect(readme).toContain(limit);
  }
});
