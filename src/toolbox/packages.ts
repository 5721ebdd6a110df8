import { BackupError } from '../protocol/errors.ts';

/** Which Debian package brings a program; QEMU's own names would remove Proxmox's package. */
const packages = new Map([
  ['borg', 'borgbackup'],
  ['brotli', 'brotli'],
  ['bzip2', 'bzip2'],
  ['find', 'findutils'],
  ['flock', 'util-linux'],
  ['gzip', 'gzip'],
  ['lzop', 'lzop'],
  ['mkfifo', 'coreutils'],
  ['mount', 'mount'],
  ['nbdfuse', 'libnbd-bin'],
  ['nsenter', 'util-linux'],
  ['perl', 'perl'],
  ['qemu-img', 'pve-qemu-kvm'],
  ['qemu-nbd', 'pve-qemu-kvm'],
  ['setpriv', 'util-linux'],
  ['ssh', 'openssh-client'],
  ['sync', 'coreutils'],
  ['tar', 'tar'],
  ['umount', 'mount'],
  ['xargs', 'findutils'],
  ['xz', 'xz-utils'],
  ['zstd', 'zstd'],
]);

/** Says what to install. */
export function missingProgram(program: string): BackupError {
  const name = packages.get(program);
  const advice = name === undefined ? '' : `; install it with: apt install ${name}`;
  return new BackupError(`the program ${program} is missing${advice}`);
}
