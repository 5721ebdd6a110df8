# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::BackupBridge::StoragePlugin;

# What every storage type of the bridge has in common. A type's own plugin adds only its name.

use v5.36;

use JSON;
use List::Util qw(max min);

use PVE::Storage::Plugin;

use PVE::BackupBridge::Client;
use PVE::BackupBridge::Manifest;
use PVE::BackupBridge::Secrets;
use PVE::BackupBridge::Untaint qw(field match printable);

use base qw(PVE::Storage::Plugin);

# The versions of the plugin API that were tested [D1].
use constant MIN_APIVER => 11;
use constant MAX_APIVER => 15;

# Seconds for one poll: check_connection, activate_storage and status together [A12].
our $POLL_TIMEOUT = 1.8;
# The same while the last one still has no answer: the other storages wait meanwhile.
our $LATE_TIMEOUT = 0.2;
# For so many seconds the last known state stands in for an answer that is late.
our $STATE_TIMEOUT = 60;

# For all that adding a storage does: PVE gives it 60 under the lock of storage.cfg [D3].
our $ADD_TIMEOUT = 50;

my $deadlines = {}; # storeid => of the poll under way
my $late = {}; # storeid => 1 if the last answer was late
my $adding = {}; # storeid => deadline of the check that follows
my $states = {}; # storeid => { time, sizes } of the last answers

my sub client($class, $storeid, $scfg) {
    PVE::BackupBridge::Manifest::require_valid($class->type());
    return PVE::BackupBridge::Client->new($class->type(), $storeid, $scfg);
}

my sub call($class, $storeid, $scfg, $method, $params = {}, %opts) {
    return client($class, $storeid, $scfg)->call($method, $params, %opts);
}

my $print_line = sub ($level, $message) { print("$message\n"); };

my sub call_archive($class, $storeid, $scfg, $method, $volname, %params) {
    my (undef, $name) = $class->parse_volname($volname);
    return call($class, $storeid, $scfg, $method, { %params, volname => "backup/$name" });
}

# Configuration

sub api($class) {
    my $node = PVE::Storage->can('APIVER') ? PVE::Storage::APIVER() : MIN_APIVER;
    return max(MIN_APIVER, min($node, MAX_APIVER));
}

sub plugindata($class) {
    return {
        content => [{ backup => 1, none => 1 }, { backup => 1 }],
        features => { 'backup-provider' => 1 },
        'sensitive-properties' =>
            PVE::BackupBridge::Manifest::load($class->type())->{sensitive},
    };
}

sub properties($class) {
    return PVE::BackupBridge::Manifest::load($class->type())->{properties};
}

sub options($class) {
    return PVE::BackupBridge::Manifest::load($class->type())->{options};
}

# Changes of storage.cfg, under its lock [D3].

# Calls the other hooks as functions: PVE's calls go by the class. The check of the connection comes next
# and shares the time.
sub on_add_hook($class, $storeid, $scfg, %sensitive) {
    my $deadline = PVE::BackupBridge::Client::now() + $ADD_TIMEOUT;
    on_delete_hook($class, $storeid, $scfg); # what a storage of this name had before
    my $is_done = eval {
        PVE::BackupBridge::Secrets::update($class->type(), $storeid, \%sensitive, 1);
        my $tell = sub ($level, $message) { warn "$message\n"; };
        my %opts = (deadline => $deadline - $POLL_TIMEOUT, log => $tell);
        call($class, $storeid, $scfg, 'on_add_hook', {}, %opts)
            // die "the store of '$storeid' was not ready in $ADD_TIMEOUT s: try again\n";
    };
    my $err = $@;
    eval { on_delete_hook($class, $storeid, $scfg) } if !$is_done;
    die $err if !$is_done;
    $adding->{$storeid} = $deadline;
    return undef;
}

# Of nodes up to version 12. A secret that is deleted has the value undef.
sub on_update_hook($class, $storeid, $update, %sensitive) {
    PVE::BackupBridge::Secrets::update($class->type(), $storeid, \%sensitive, 0);
    return undef;
}

sub on_update_hook_full($class, $storeid, $scfg, $update, $delete, $sensitive) {
    return on_update_hook($class, $storeid, $update, %{ $sensitive // {} });
}

sub on_delete_hook($class, $storeid, $scfg) {
    PVE::BackupBridge::Client::stop($storeid);
    PVE::BackupBridge::Secrets::remove($class->type(), $storeid);
    return undef;
}

# Names. They are parsed for every entry of every list: without the host [D5].

my sub parse_archive($class, $volname) {
    my ($name) = $volname =~ m!^backup/(.*)\z!s;
    my $archive = PVE::BackupBridge::Manifest::parse_archive_name($class->type(), $name)
        // return undef;
    return { %$archive, format => $class->type() . ($archive->{vmtype} eq 'qemu' ? '-vm' : '-ct') };
}

sub parse_volname($class, $volname) {
    my $archive = parse_archive($class, $volname)
        // die "unable to parse bridge volume name '" . printable($volname) . "'\n";
    return ('backup', $archive->@{qw(name vmid)}, undef, undef, undef, $archive->{format});
}

sub path($class, $scfg, $volname, $storeid, $snapname = undef, @) {
    die "archives have no snapshots\n" if defined($snapname);
    my ($vtype, $name, $vmid) = $class->parse_volname($volname);
    my $path = ($scfg->{path} // $class->type() . ":$storeid") . "/$name";
    return wantarray ? ($path, $vmid, $vtype) : $path;
}

# Polls

# The answer, undef if it is late. The methods of one poll share a deadline, which the first one sets.
my sub poll($class, $storeid, $scfg, $method, $is_first) {
    my $now = PVE::BackupBridge::Client::now();
    my $is_hung = delete($late->{$storeid}) && !client($class, $storeid, $scfg)->is_starting();
    my $timeout = $is_hung ? $LATE_TIMEOUT : $POLL_TIMEOUT;
    my $deadline = $deadlines->{$storeid} // 0;
    $deadline = max($now + $timeout, delete($adding->{$storeid}) // 0)
        if $is_first || $deadline + $POLL_TIMEOUT < $now;
    $deadlines->{$storeid} = $deadline;
    my $state = delete $states->{$storeid}; # an error clears it
    my $result = call($class, $storeid, $scfg, $method, {}, deadline => $deadline);
    $late->{$storeid} = !$result;
    $state = { %{ $state // {} }, time => $now } if $result;
    $states->{$storeid} = $state if $state && $state->{time} + $STATE_TIMEOUT >= $now;
    return $result;
}

sub check_connection($class, $storeid, $scfg, @) {
    return 1 if poll($class, $storeid, $scfg, 'check_connection', 1);
    # A busy node is no reason to refuse a backup: the calls that follow wait for the host.
    return $states->{$storeid} || client($class, $storeid, $scfg)->is_starting() ? 1 : 0;
}

# Does no work: what dead runs left is collected by jobs.
sub activate_storage($class, @) {
    PVE::BackupBridge::Manifest::require_valid($class->type());
    return 1;
}

sub status($class, $storeid, $scfg, @) {
    my $result = poll($class, $storeid, $scfg, 'status', 0);
    delete $deadlines->{$storeid}; # the last one of a poll
    $states->{$storeid}->{sizes} = [map { field('size', $result, $_) } qw(total avail used)]
        if $result;
    my $sizes = $states->{$storeid} ? $states->{$storeid}->{sizes} : undef;
    return $sizes ? (@$sizes, 1) : (0, 0, 0, 0);
}

# Archives

# What does not parse would be dropped by PVE anyway [D5].
my sub encode_info($class, $storeid, $entry) {
    my $volname = field('text', $entry, 'volname');
    my $archive = parse_archive($class, $volname) // return;
    my $verification = $entry->{verification};
    my @present = grep { length($entry->{$_}) } qw(notes encrypted);
    my %texts = map { $_ => field('text', $entry, $_) } @present;
    # Instead of the exact one, where PVE knows it.
    my $is_guess = $entry->{'approximate-size'} && $class->api() >= 15;
    return {
        volid => "$storeid:backup/$archive->{name}",
        content => 'backup',
        $archive->%{qw(format vmid)},
        subtype => $archive->{vmtype},
        ($is_guess ? 'approximate-size' : 'size') => field('size', $entry),
        ctime => field('time', $entry, 'ctime'),
        protected => $entry->{protected} ? 1 : 0,
        %texts,
        $verification
        ? (verification => { map { $_ => field('text', $verification, $_) } qw(state upid) })
        : (),
    };
}

sub list_volumes($class, $storeid, $scfg, $vmid, $content_types) {
    return [] if !grep { $_ eq 'backup' } @$content_types;
    my $params = defined($vmid) ? { vmid => int($vmid) } : {};
    my $entries = call($class, $storeid, $scfg, 'list_volumes', $params);
    die "the backup host returned no list\n" if ref($entries) ne 'ARRAY';
    return [map { encode_info($class, $storeid, $_) } @$entries];
}

# Of the store, since version 14.
sub get_identity($class, $scfg, $storeid) {
    return field('text', call($class, $storeid, $scfg, 'get_identity'), 'identity');
}

sub list_images($class, @) {
    return [];
}

sub volume_size_info($class, $scfg, $storeid, $volname, @) {
    my $result = call_archive($class, $storeid, $scfg, 'volume_size_info', $volname);
    my $size = field('size', $result);
    my $used = field('size', $result, 'used');
    return wantarray ? ($size, ($class->parse_volname($volname))[6], $used, undef) : $size;
}

sub get_volume_attribute($class, $scfg, $storeid, $volname, $attribute) {
    return if $attribute ne 'notes' && $attribute ne 'protected';
    my @args = ('get_volume_attribute', $volname, attribute => $attribute);
    my $result = call_archive($class, $storeid, $scfg, @args);
    return $result->{value} ? 1 : 0 if $attribute eq 'protected';
    return field('text', $result, 'value');
}

sub update_volume_attribute($class, $scfg, $storeid, $volname, $attribute, $value) {
    die "attribute '$attribute' is not supported for storage type '$scfg->{type}'\n"
        if $attribute ne 'notes' && $attribute ne 'protected';
    my $encoded = $attribute eq 'notes' ? ($value // '') . '' : $value ? JSON::true : JSON::false;
    my @args = ('update_volume_attribute', $volname, attribute => $attribute, value => $encoded);
    call_archive($class, $storeid, $scfg, @args);
    return;
}

sub free_image($class, $storeid, $scfg, $volname, @) {
    die "cannot remove protected archive '$volname' on '$storeid'\n"
        if $class->get_volume_attribute($scfg, $storeid, $volname, 'protected');
    call_archive($class, $storeid, $scfg, 'free_image', $volname);
    # Run by PVE as a worker of its own, after its lock [D7].
    return sub { call($class, $storeid, $scfg, 'reclaim_space', {}, log => $print_line) };
}

sub prune_backups($class, $scfg, $storeid, $keep, $vmid, $type, $dryrun, $log = undef) {
    $log //= $print_line;
    my @backups = grep { !defined($type) || $_->{subtype} eq $type }
        $class->list_volumes($storeid, $scfg, $vmid, ['backup'])->@*;
    my (@list, $groups);
    for my $backup (@backups) {
        my $entry = { $backup->%{qw(ctime vmid volid)}, type => $backup->{subtype} };
        $entry->{mark} = 'protected' if $backup->{protected};
        push @list, $entry;
        push $groups->{"$entry->{type}/$entry->{vmid}"}->@*, $entry;
    }
    PVE::Storage::prune_mark_backup_group($_, $keep) for values %$groups;
    return \@list if $dryrun;

    my $errors = {};
    for my $volid (map { $_->{mark} eq 'remove' ? $_->{volid} : () } @list) {
        $log->('info', "removing backup '$volid'");
        my $err = PVE::BackupBridge::Client::failure(
            sub {
                my $volname = $volid =~ s/^\Q$storeid\E://r;
                call_archive($class, $storeid, $scfg, 'free_image', $volname);
            },
        );
        $errors->{$volid} = $err if $err;
    }
    my $err = PVE::BackupBridge::Client::failure(
        sub { call($class, $storeid, $scfg, 'reclaim_space', {}, log => $log) }
    );
    $log->('warn', "no space was freed - $err") if $err;
    return \@list if !%$errors;

    # What another process has removed meanwhile is no failure.
    my $left = $class->list_volumes($storeid, $scfg, $vmid, ['backup']);
    my @failed = grep { $errors->{$_} } map { $_->{volid} } @$left;
    $log->('err', "error when removing backup '$_' - $errors->{$_}") for @failed;
    die 'error pruning backups: cannot remove ' . join(', ', @failed) . "\n" if @failed;
    return \@list;
}

# There is nothing to activate, whatever the hints.
sub activate_volume($class, $storeid, $scfg, $volname, $snapname = undef, @) {
    $class->path($scfg, $volname, $storeid, $snapname);
    return 1;
}

sub deactivate_storage($class, $storeid, @) {
    PVE::BackupBridge::Client::stop($storeid);
    return 1;
}

sub new_backup_provider($class, $scfg, $storeid, $log_function) {
    require PVE::BackupProvider::Plugin::Bridge;
    return PVE::BackupProvider::Plugin::Bridge->new($class, $scfg, $storeid, $log_function);
}

# What only disks can do.
my @refused = qw(
    alloc_image clone_image create_base filesystem_path find_free_diskname get_volume_notes map_volume
    qemu_blockdev_options rename_snapshot rename_volume update_volume_notes volume_export
    volume_import volume_qemu_snapshot_method volume_resize volume_rollback_is_possible volume_snapshot
    volume_snapshot_delete volume_snapshot_info volume_snapshot_rollback
);
for my $method (@refused) {
    no strict 'refs'; ## no critic (ProhibitNoStrict)
    *$method = sub ($class, @) {
        die "storage type '" . $class->type() . "' keeps archives only: no $method\n";
    };
}

1;
