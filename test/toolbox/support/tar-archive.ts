/** Builds tar archives field by field, right and wrong ones. */
export interface HeaderFields {
  name: string | Buffer;
  type?: string;
  size?: number;
  /** In place of `size`. */
  sizeField?: Buffer;
  linkName?: string;
  magic?: string;
  prefix?: string;
  /** Written over the finished block before its checksum. */
  patches?: readonly [at: number, bytes: string | Buffer][];
}

export const block = 512;
const posix = 'ustar\x0000';
export const gnu = 'ustar  \0';

export function pad(body: Buffer): Buffer {
  return Buffer.concat([body, Buffer.alloc((block - (body.length % block)) % block)]);
}

export function octal(value: number, length: number): string {
  return `${value.toString(8).padStart(length - 1, '0')}\0`;
}

export function header(fields: HeaderFields): Buffer {
  const { name, type = '0', size = 0, linkName = '', magic = posix, prefix = '' } = fields;
  const bytes = Buffer.alloc(block);
  const put = (at: number, value: string | Buffer) =>
    typeof value === 'string' ? bytes.write(value, at, 'latin1') : value.copy(bytes, at);
  put(0, name);
  put(100, octal(0o644, 8));
  put(108, octal(0, 8));
  put(116, octal(0, 8));
  put(124, fields.sizeField ?? octal(size, 12));
  put(136, octal(1_700_000_000, 12));
  put(156, type);
  put(157, linkName);
  put(257, magic);
  put(345, prefix);
  for (const [at, value] of fields.patches ?? []) put(at, value);
  bytes.write(' '.repeat(8), 148);
  const sum = bytes.reduce((all, byte) => all + byte, 0);
  bytes.write(`${octal(sum, 7)} `, 148, 'latin1');
  return bytes;
}

export function member(fields: HeaderFields, body: string | Buffer = ''): Buffer {
  const data = Buffer.from(body);
  return Buffer.concat([header({ size: data.length, ...fields }), pad(data)]);
}

function record(key: string, value: string | Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from('\n')]);
  let length = rest.length;
  while (`${length}`.length + rest.length !== length) length = `${length}`.length + rest.length;
  return Buffer.concat([Buffer.from(`${length}`), rest]);
}

export function pax(records: readonly [string, string | Buffer][], type = 'x'): Buffer {
  const body = Buffer.concat(records.map(([key, value]) => record(key, value)));
  return member({ name: './PaxHeaders/x', type }, body);
}

export function long(type: 'L' | 'K', name: string): Buffer {
  return member({ name: '././@LongLink', type, magic: gnu }, `${name}\0`);
}

export const end = Buffer.alloc(2 * block);

/** A container that passes, with `parts` among its members. */
export function container(...parts: Buffer[]): Buffer {
  const files = Array.from({ length: 10 }, (_, at) =>
    member({ name: `./etc/f${at}` }, `file ${at}`),
  );
  const folders = ['./', './sbin/', './etc/'].map((name) => member({ name, type: '5' }));
  return Buffer.concat([...folders, ...files.slice(5), ...parts, ...files.slice(0, 5), end]);
}
