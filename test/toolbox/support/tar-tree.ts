import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';

/** How PVE unpacks, and how vzdump packs. */
export const pveFlags = [
  '--one-file-system',
  ...['-p', '--numeric-owner', '--acls'],
  ...['--xattrs', '--xattrs-include=user.*', '--xattrs-include=security.capability'],
  ...['--warning=no-file-ignored', '--warning=no-xattr-write'],
];

/** A small tree with all that a container may have; `loop` and `null` are device nodes. */
export function makeTree(directory: string): string {
  const tree = join(directory, 'tree');
  mkdirSync(tree);
  const script = `
    set -e
    mkdir -p sbin etc dev usr/lib empty
    for n in 1 2 3 4 5 6 7 8 9 10; do echo "file $n" > etc/f$n; done
    echo init > sbin/init; chmod 4755 sbin/init; setcap cap_net_raw+ep sbin/init
    ln etc/f1 hard; ln -s ../../outside link; mkfifo fifo
    mknod dev/null c 1 3; mknod null c 1 3; ln null hard-null; mknod usr/lib/loop b 7 0
    setfattr -n user.x -v "$(printf '\\n19 path=../../evil\\n')" etc/f2; setfacl -m u:1000:r etc/f3
    setfacl -d -m u:1000:rx etc
    chown 1000:2000000 etc/f4; touch -d '1969-12-31 23:59:50.25 UTC' etc/before-1970
    truncate -s 9G sparse; printf hello | dd of=sparse bs=1 seek=5000000000 conv=notrunc status=none
    for n in $(seq 0 7 210); do printf %4096s x | dd of=holes bs=4096 seek=$n conv=notrunc status=none; done
    printf tail >> holes
    truncate -s 1M "$(printf 'h\\303\\266le')"; truncate -s 1M "$(printf 'etc/h\\366le')"
    touch "$(printf 'etc/\\377\\376')" "$(printf 'etc/new\\nline')" etc/-dash 'etc/"quote'
    d=long-$(printf 'd%.0s' $(seq 190)); mkdir -p $d/$d; echo x > $d/$d/file; ln $d/$d/file $d/hard
    ln -s $d/$d/$d $d/symbolic`;
  execFileSync('bash', ['-c', script], { cwd: tree });
  return tree;
}
