import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { createLogger, openLogFile } from '../../src/host/log.ts';

test('secrets reach neither the task log nor the log file, whoever logs them', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'log-'));
  try {
    const path = join(directory, 'deep/store1.log');
    const told: string[] = [];
    const tell = (level: string, message: string) => told.push(`${level} ${message}`);
    const log = createLogger(openLogFile(path, ['s3cret']), tell, ['s3cret']);
    log.info('token s3cret given');
    log.error('401\nfor s3cret');
    log.debug('request', { headers: { authorization: 'Bearer s3cret' } });
    expect(told).toEqual(['info token [secret] given', 'err 401 for [secret]']);
    const lines = (await readFile(path, 'utf8')).trimEnd().split('\n');
    expect(lines).toHaveLength(3);
    expect(lines.join()).not.toContain('s3cret');
    expect(JSON.parse(lines[2] ?? '')).toMatchObject({
      msg: 'request',
      headers: { authorization: 'Bearer [secret]' },
    });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
});
