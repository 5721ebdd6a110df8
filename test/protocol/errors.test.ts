import { expect, test } from 'vitest';
import { BackupError, isBackupError, messageOf, oneLine } from '../../src/protocol/errors.ts';

test('a BackupError of another copy of the class is recognised', () => {
  const foreign = new Error('full');
  Object.defineProperty(foreign, Symbol.for('pve-backup-bridge.BackupError'), { value: true });
  expect(isBackupError(foreign)).toBe(true);
  expect(isBackupError(new Error('full'))).toBe(false);
});

test.each([
  ['two\nlines', 'two lines'],
  ['a\r\n\tb\u0000c', 'a b c'],
  ['INFO\u2028ERROR', 'INFO ERROR'],
  ['Grüße 🐪', 'Grüße 🐪'],
])('%j is one line: %j', (text, line) => {
  expect(oneLine(text)).toBe(line);
  expect(new BackupError(text).message).toBe(line);
});

test.each([
  [new TypeError('x'), 'x'],
  ['text', 'text'],
  [undefined, 'undefined'],
  [null, 'null'],
])('anything thrown has a message: %s', (thrown, text) => expect(messageOf(thrown)).toBe(text));
