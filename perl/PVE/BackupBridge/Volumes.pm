# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::BackupBridge::Volumes;

# The volumes of backup_vm: what the host is told of them, and what it may ask for meanwhile, because code
# references and open files are this process's [B7].

use v5.36;

use Fcntl qw(O_RDWR);
use IO::File;
use POSIX ();

use PVE::BackupBridge::Untaint qw(field match);

# fallocate(2), by processor; and its mode, which keeps the size.
my $FALLOCATE = { aarch64 => 47, x86_64 => 285 }->{ (POSIX::uname())[4] };
use constant PUNCH_HOLE => 3;

# For the wire.
sub encode($volumes) {
    my $encoded = {};
    for my $device (keys %$volumes) {
        my $volume = $volumes->{$device};
        my @keys = grep { exists($volume->{$_}) } qw(bitmap-mode bitmap-name nbd-path);
        $encoded->{$device} = { $volume->%{@keys}, size => int($volume->{size}) };
        $encoded->{$device}->{'file-descriptor'} = fileno($volume->{'file-handle'})
            if $volume->{'file-handle'};
        $encoded->{$device}->{'block-device'} = $volume->{path} if $volume->{path}; # RFC v3
    }
    return $encoded;
}

my sub requested($volumes, $params) {
    my $device = field('device-name', $params, 'device');
    return $volumes->{$device} // die "the backup host asked for '$device', which is no volume\n";
}

# What the host may ask for, by method. Any that makes no sense ends the backup.
sub requests($volumes) {
    my $is_told = {};
    return {
        volume_next_dirty_regions => sub ($params) {
            my $volume = requested($volumes, $params);
            my ($max, @regions) = field('size', $params, 'max');
            # Without a code reference all is dirty.
            my $next = $volume->{'next-dirty-region'}
                // sub { $is_told->{$volume}++ ? () : (0, $volume->{size}) };
            while (@regions < $max) {
                my ($offset, $length) = $next->() or last;
                push @regions, [int($offset), int($length)];
            }
            return \@regions;
        },
        # Gives back fleecing space; a source that cannot loses nothing else.
        volume_deallocate => sub ($params) {
            my $volume = requested($volumes, $params);
            my ($offset, $length) = map { field('size', $params, $_) } qw(offset length);
            die "the backup host wants to free what is not on the volume\n"
                if !$length || $offset + $length > $volume->{size};
            my $fh = $volume->{'file-handle'}
                // IO::File->new(match('path', $volume->{path}), O_RDWR);
            syscall($FALLOCATE, fileno($fh), PUNCH_HOLE, $offset, $length) if $FALLOCATE && $fh;
            return {};
        },
    };
}

1;
