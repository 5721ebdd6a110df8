import { MessageChannel } from 'node:worker_threads';

const { port1: nowhere, port2: end } = new MessageChannel();
end.close();
nowhere.unref();

/**
 * Gives a large buffer's memory back at once. The collector lets 64 MiB of them pile up before it looks, which is
 * half of what a host may use. Transferring to a closed port leaves nobody who has it; the buffer is
 * empty afterwards. Nothing happens to a buffer that shares its memory with others.
 */
export function freeMemory(buffer: Uint8Array): void {
  const memory = buffer.buffer;
  const whole = buffer.byteLength === memory.byteLength;
  if (whole && memory instanceof ArrayBuffer) nowhere.postMessage(undefined, [memory]);
}
