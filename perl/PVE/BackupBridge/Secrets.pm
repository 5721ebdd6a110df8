# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::BackupBridge::Secrets;

# What PVE calls sensitive: one file for each secret of a storage, never a line of storage.cfg [D3].

use v5.36;

use Time::HiRes ();

use PVE::Tools;

use PVE::BackupBridge::Manifest;
use PVE::BackupBridge::Untaint qw(match);

my sub directory() {
    no warnings 'once';
    return "$PVE::BackupBridge::Client::ROOT/etc/pve/priv/storage";
}

# Untainted, in a statement of its own [A2].
my sub storeid($storeid) {
    return match('storeid', $storeid) // die "unable to parse storage ID\n";
}

# Tells two generations of a storage's secrets apart, for hosts that have read the older one.
sub state($type, $storeid) {
    my @names = sort keys PVE::BackupBridge::Manifest::load($type)->{sensitive}->%*;
    my @files = map { directory() . "/$storeid.$_" } @names;
    return join(' ', map { join(':', (Time::HiRes::stat($_))[1, 7, 9]) } @files);
}

# Writes the secrets that have a value here and removes those whose value is undef.
sub update($type, $storeid, $values, $is_new) {
    my $manifest = PVE::BackupBridge::Manifest::require_valid($type);
    my $clean = storeid($storeid);
    my @names = sort keys $manifest->{sensitive}->%*;
    for my $name (grep { $is_new || exists($values->{$_}) } @names) {
        die "storage '$clean' needs a value for '$name'\n"
            if $manifest->{needed}->{$name} && !defined($values->{$name});
    }
    for my $name (grep { exists($values->{$_}) } @names) {
        my $file = directory() . "/$clean.$name";
        if (defined($values->{$name})) {
            mkdir(directory(), 0700);
            my $text = PVE::BackupBridge::Client::as_text($values->{$name});
            utf8::encode($text);
            PVE::Tools::file_set_contents($file, "$text\n", oct(600));
        } else {
            unlink($file) or $!{ENOENT} or die "cannot remove '$file' - $!\n";
        }
    }
}

# Also those that an earlier version of the provider had, and what a write that was killed has left.
sub remove($type, $storeid) {
    my $directory = directory();
    my $names = join('|', "\Q$type\E-[a-z0-9-]+", qw(password username));
    my $clean = storeid($storeid);
    opendir(my $dir, $directory) or return;
    for my $entry (readdir($dir)) {
        my ($name) = $entry =~ m/^(\Q$clean\E\.(?:$names)(?:\.tmp\.[0-9]+)?)\z/ or next;
        unlink("$directory/$name") or $!{ENOENT} or die "cannot remove '$directory/$name' - $!\n";
    }
}

1;
