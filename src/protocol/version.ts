/** Raised whenever a shim of the old number could misread a host of the new one. */
export const protocolVersion = 1;

/** Bytes; a longer line ends the connection. */
export const maxMessageBytes = 64 * 1024 * 1024;
