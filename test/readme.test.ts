import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';

test('the README shows the recovery script word for word', async () => {
  const script = await readFile('fixtures/providers/directory-recovery.sh', 'utf8');
  expect(await readFile('README.md', 'utf8')).toContain(`\`\`\`sh\n${script}\`\`\``);
});
