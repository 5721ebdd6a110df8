#!/usr/bin/perl

# An empty file system in user space: fuse-store.pl DIRECTORY. Nothing of it is cached, so that whoever looks at
# it waits for this process, for ever if it is stopped. Prints a line once it is mounted; unmounts at its end.

use v5.36;

use Errno qw(ENODEV ENOENT ENOSYS EROFS);
use Fcntl qw(F_SETFD O_RDWR S_IFDIR);

my ($directory) = @ARGV;

sysopen(my $fuse, '/dev/fuse', O_RDWR) or die "/dev/fuse - $!\n";
fcntl($fuse, F_SETFD, 0) or die "fcntl - $!\n"; # for mount
my $options = 'fd=' . fileno($fuse) . ',rootmode=40000,user_id=0,group_id=0';
system('mount', '-i', '-t', 'fuse', '-o', $options, 'fuse-store', $directory) == 0
    or die "cannot mount $directory\n";
$SIG{TERM} = sub { exit(0) };

END {
    local $?;
    system('umount', '-l', $directory);
}
STDOUT->autoflush(1);

my $blocks = 1000;
my $root = pack('Q6 L10', 1, 0, 0, (1_700_000_000) x 3, (0) x 3, S_IFDIR, 2, 0, 0, 0, 4096, 0);
# opcode => what is answered, in the layouts of linux/fuse.h; a number is an error
my $answers = {
    1 => -ENOENT(), # LOOKUP
    3 => pack('Q L2', 0, 0, 0) . $root, # GETATTR, valid for 0 seconds
    9 => -EROFS(), # MKDIR
    17 => pack('Q5 L10', $blocks, 600, 600, 10, 10, 4096, 255, 4096, (0) x 7), # STATFS
    26 => pack('L4 S2 L2 S2 L8', 7, 31, 0, 0, 12, 9, 4096, 1, (0) x 10), # INIT
    27 => pack('Q L2', 0, 0, 0), # OPENDIR
    28 => '', # READDIR
    29 => '', # RELEASEDIR
};
my $is_silent = { 2 => 1, 36 => 1, 42 => 1 }; # FORGET, INTERRUPT, BATCH_FORGET

while (sysread($fuse, my $request, 128 * 1024) // ($! == ENODEV ? 0 : die "read - $!\n")) {
    my (undef, $opcode, $id) = unpack('L2 Q', $request);
    next if $is_silent->{$opcode};
    my $answer = $answers->{$opcode} // -ENOSYS();
    my ($error, $content) = $answer =~ m/^-\d+\z/ ? ($answer, '') : (0, $answer);
    syswrite($fuse, pack('L l Q', 16 + length($content), $error, $id) . $content);
    say 'mounted' if $opcode == 26;
}
