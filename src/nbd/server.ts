import { rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { maxSocketPath } from './constants.ts';
import { ServerSession } from './server-session.ts';

/** A disk image that can be served; its methods are called concurrently. */
export interface NbdImage {
  /** Bytes. */
  readonly size: number;
  /** Within the size, 32 MiB at most. The buffer must stay as it is until it has been sent. */
  read(offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array>;
  /** Covers the range without gaps. Absent: no block status is offered. */
  extents?(
    offset: number,
    length: number,
  ): Promise<readonly { offset: number; length: number; zero: boolean }[]>;
}

export interface NbdServerOptions {
  readonly socketPath: string;
  /** Also served as the default export, whose name is empty. */
  readonly exportName: string;
  readonly image: NbdImage;
}

/**
 * Serves an image read-only to any number of clients. A read that throws is EIO for that request; a client
 * that sends junk is dropped. `close` drops all clients, removes the socket and may be called again.
 */
export async function serveNbd(options: NbdServerOptions): Promise<{ close(): Promise<void> }> {
  const { socketPath, exportName, image } = options;
  if (Buffer.byteLength(socketPath) > maxSocketPath) {
    throw new RangeError(`the socket path is longer than ${maxSocketPath} bytes: ${socketPath}`);
  }
  const clients = new Set<Socket>();
  const server = createServer((socket) => {
    clients.add(socket);
    socket.on('close', () => clients.delete(socket));
    new ServerSession(socket, image, exportName);
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(socketPath, () => {
      server.off('error', reject);
      resolve();
    });
  });
  let closing: Promise<void> | undefined;
  const close = async () => {
    const closed = new Promise((resolve) => server.close(resolve));
    for (const socket of clients) socket.destroy();
    await closed;
    await rm(socketPath, { force: true });
  };
  return {
    close: () => {
      closing ??= close();
      return closing;
    },
  };
}
