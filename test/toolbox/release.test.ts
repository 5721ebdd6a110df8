import { describe, expect, test } from 'vitest';
import { ReleaseStack } from '../../src/toolbox/release.ts';

const never = () => new Promise<void>(() => {});
const failing = (text: string) => () => {
  throw new Error(text);
};

describe('release stack', () => {
  test('gives back in reverse order, once', async () => {
    const order: string[] = [];
    const stack = new ReleaseStack();
    for (const name of ['a', 'b', 'c']) stack.add(name, () => void order.push(name));
    await Promise.all([stack.release(), stack.release()]);
    await stack.release();
    expect(order).toEqual(['c', 'b', 'a']);
  });

  test('a failing step does not stop the others', async () => {
    const order: string[] = [];
    const stack = new ReleaseStack();
    stack.add('a', () => void order.push('a'));
    stack.add('b', failing('stuck'));
    stack.add('c', () => Promise.reject(new Error('gone')));
    await expect(stack.release()).rejects.toThrow(
      'cannot release c: gone; cannot release b: stuck',
    );
    expect(order).toEqual(['a']);
  });

  test('a hanging step is given up', async () => {
    const order: string[] = [];
    const stack = new ReleaseStack({ stepMs: 20 });
    stack.add('a', () => void order.push('a'));
    stack.add('b', never);
    await expect(stack.release()).rejects.toThrow('cannot release b: no end after 0.02 s');
    expect(order).toEqual(['a']);
  });

  test('what comes too late is given back at once', async () => {
    const order: string[] = [];
    const stack = new ReleaseStack();
    stack.add('a', failing('first'));
    await expect(stack.release()).rejects.toThrow('first');
    stack.add('b', () => void order.push('b'));
    expect(order).toEqual(['b']);
    await expect(stack.release()).rejects.toThrow('first');
  });
});
