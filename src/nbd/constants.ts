/** Numbers of the NBD protocol (doc/proto.md of the reference implementation), named after its chapters. */
export const magic = {
  /** 'NBDMAGIC', then 'IHAVEOPT', as two words each. */
  greeting: 0x4e42444d41474943n,
  option: 0x49484156454f5054n,
  oldstyle: 0x00420281861253n,
  optionReply: 0x0003e889045565a9n,
  request: 0x25609513,
  simpleReply: 0x67446698,
  structuredReply: 0x668e33ef,
} as const;

/** Handshake flags of the server; the client's flags have the same bits. */
export const handshakeFlag = { fixedNewstyle: 1, noZeroes: 2 } as const;

export const transmissionFlag = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
  sendDf: 1 << 7,
  canMultiConn: 1 << 8,
} as const;

export const option = {
  exportName: 1,
  abort: 2,
  list: 3,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;

export const optionReply = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errorUnsupported: 0x80000001,
  errorPolicy: 0x80000002,
  errorInvalid: 0x80000003,
  errorTlsRequired: 0x80000005,
  errorUnknown: 0x80000006,
  errorShutdown: 0x80000007,
  errorTooBig: 0x80000009,
} as const;

export const info = { export: 0, blockSize: 3 } as const;

export const command = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

export const commandFlag = { fua: 1, noHole: 2, df: 4, reqOne: 8 } as const;

export const chunkType = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  /** Set in every error type, known or not. */
  errorBit: 0x8000,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;

export const chunkFlagDone = 1;

/** Flags of the metadata context base:allocation. */
export const allocationFlag = { hole: 1, zero: 2 } as const;

/** No string on the wire is longer. */
export const maxString = 4096;
/** Neither side may call a payload up to this size an attack; we never ask for more [E1]. */
export const maxPayload = 32 * 1024 * 1024;
/** A server should not send more descriptors in one chunk. */
export const maxStatusExtents = 1 << 20;
/** QEMU serves this many requests of a connection at a time [E1]. */
export const maxInFlight = 16;
/** sun_path less its NUL; libuv cuts longer ones silently. */
export const maxSocketPath = 107;
