# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::BackupProvider::Plugin::Bridge;

# PVE's backup provider API, handed to the host of a storage. Names and keys stay PVE's own.

use v5.36;

use File::Basename qw(dirname);
use File::Path qw(make_path);
use JSON;
use MIME::Base64 qw(decode_base64 encode_base64);

use PVE::BackupProvider::Plugin::Base;
use PVE::Tools;

use PVE::BackupBridge::Client;
use PVE::BackupBridge::Manifest;
use PVE::BackupBridge::Untaint qw(field match);
use PVE::BackupBridge::Volumes;

use base qw(PVE::BackupProvider::Plugin::Base);

# Bytes, whatever they mean [B16].
my sub encode_config($config) {
    utf8::encode($config) if !utf8::downgrade($config, 1);
    return encode_base64($config, '');
}

# What PVE has read of a guest's configuration.
my sub encode_guest($guest_config, $info) {
    my $guest = {
        'guest-config' => encode_config($guest_config),
        'bandwidth-limit' => int($info->{'bandwidth-limit'} // 0),
    };
    my $firewall_config = $info->{'firewall-config'};
    $guest->{'firewall-config'} = encode_config($firewall_config) if defined($firewall_config);
    return $guest;
}

# A part of a backup job, whose log is the task's.
my sub call_job($self, $method, $params = {}, %opts) {
    return $self->{client}->call($method, $params, %opts, log => $self->{log});
}

my sub call_guest($self, $method, $vmid, $params, %opts) {
    return call_job($self, $method, { %$params, vmid => int($vmid) }, %opts);
}

# Outside of jobs the log function prints to STDOUT, where it would mix with the config: silence [A11].
my sub call_archive($self, $method, $volname, $params = {}, %opts) {
    my (undef, $name) = $self->{plugin}->parse_volname($volname);
    return $self->{client}->call($method, { %$params, volname => "backup/$name" }, %opts);
}

# Runs before the global vzdump lock is taken, and in parents of workers: starts nothing [A4, A5].
sub new($class, $plugin, $scfg, $storeid, $log_function) {
    my $type = $plugin->type();
    my $title = PVE::BackupBridge::Manifest::require_valid($type)->{title};
    my $client = PVE::BackupBridge::Client->new($type, $storeid, $scfg);
    my $self = { plugin => $plugin, title => $title, log => $log_function, client => $client };
    return bless $self, $class;
}

sub provider_name($self) {
    return $self->{title};
}

# Backup

sub job_init($self, $start_time) {
    call_job($self, 'job_init', { 'start-time' => int($start_time) }, hold => 1);
    return;
}

sub job_cleanup($self) {
    call_job($self, 'job_cleanup', {}, hold => 0);
    return;
}

sub backup_init($self, $vmid, $vmtype, $start_time) {
    my $params = { vmtype => $vmtype, 'start-time' => int($start_time) };
    my $result = call_guest($self, 'backup_init', $vmid, $params, hold => 1);
    my $name = field('archive-name', $result);
    # The archive has to be addressable before backup_cleanup [B10].
    $self->{plugin}->parse_volname("backup/$name");
    return { 'archive-name' => $name };
}

# RFC v3 has one bitmap for all disks of a VM, which QEMU makes anew where its id is new. Here stands what it is
# for: the id, and a size per device.
my sub bitmap_file($self, $vmid) {
    my $directory = "$PVE::BackupBridge::Client::ROOT/run/pve-backup-bridge/bitmaps";
    return "$directory/$self->{client}->{storeid}/" . match('vmid', $vmid) . '.id';
}

# The id of the last backup if every disk of then can be backed up by its bitmap.
my sub bitmap_id($self, $vmid) {
    my $file = bitmap_file($self, $vmid);
    my ($id, %sizes) = -e $file ? PVE::Tools::file_get_contents($file) =~ m/(\S+)/g : ();
    my $volumes = { map { $_ => { size => $sizes{$_} } } keys %sizes };
    my $plan = %sizes ? $self->backup_vm_query_incremental($vmid, $volumes) : {};
    my @usable = grep { $_ eq 'use' } values %$plan;
    return $id if @usable && @usable == keys %sizes;
    return "$self->{client}->{storeid}-" . time();
}

# Its callers do not ask backup_vm_query_incremental. The file comes first: a backup that fails here gets a new
# bitmap next time, as nothing of a clean area can be read now [E3].
my sub plan_bitmap($self, $vmid, $volumes, $id) {
    my $file = bitmap_file($self, $vmid);
    make_path(dirname($file), { mode => oct('700') });
    my @sizes = map { $_ => $volumes->{$_}->{size} } keys %$volumes;
    PVE::Tools::file_set_contents($file, join(' ', $id, @sizes));
    my $plan = $self->backup_vm_query_incremental($vmid, $volumes);
    for my $device (grep { $volumes->{$_}->{'bitmap-mode'} eq 'reuse' } keys %$volumes) {
        die "$device was resized, or its last backup is gone: start again to read all of it\n"
            if ($plan->{$device} // '') ne 'use';
    }
}

sub backup_get_mechanism($self, $vmid, $vmtype) {
    my $result = call_guest($self, 'backup_get_mechanism', $vmid, { vmtype => $vmtype });
    my $mechanism = field('mechanism', $result);
    return $mechanism if !wantarray || $vmtype ne 'qemu';
    return ($mechanism, $self->{bitmap_ids}->{$vmid} = bitmap_id($self, $vmid)); # RFC v3
}

sub backup_vm_query_incremental($self, $vmid, $volumes) {
    # QEMU would abort, and the guest with it [B6].
    die "VM $vmid has no disk that is included in backups: include one\n" if !%$volumes;
    my $sizes = { map { $_ => { size => int($volumes->{$_}->{size}) } } keys %$volumes };
    my $result = call_guest($self, 'backup_vm_query_incremental', $vmid, { volumes => $sizes });
    my @devices = grep { defined($result->{$_}) } keys %$volumes;
    return { map { $_ => field('bitmap-request', $result, $_) } @devices };
}

sub backup_vm($self, $vmid, $guest_config, $volumes, $info) {
    my $bitmap_id = delete $self->{bitmap_ids}->{$vmid};
    plan_bitmap($self, $vmid, $volumes, $bitmap_id) if defined($bitmap_id);
    my $params = encode_guest($guest_config, $info);
    $params->{volumes} = PVE::BackupBridge::Volumes::encode($volumes);
    my $requests = PVE::BackupBridge::Volumes::requests($volumes);
    call_guest($self, 'backup_vm', $vmid, $params, requests => $requests);
    return;
}

# Names are text on the wire, whatever they are here [B18].
my sub encode_source($info) {
    return {
        PVE::BackupBridge::Client::as_text({ $info->%{qw(directory sources)} })->%*,
        'backup-user-id' => int($info->{'backup-user-id'}),
    };
}

sub backup_container_prepare($self, $vmid, $info) {
    call_guest($self, 'backup_container_prepare', $vmid, encode_source($info));
    return;
}

# Unprivileged containers: in a forked child in namespaces of its own, as the container's root [A8]. What it
# returned would be encoded by PVE.
sub backup_container($self, $vmid, $guest_config, $exclude_patterns, $info) {
    my @patterns = grep { length($_ // '') } @$exclude_patterns;
    my $params = {
        encode_source($info)->%*,
        encode_guest($guest_config, $info)->%*,
        caller => PVE::BackupBridge::Client::this_process(),
        'exclude-patterns' => PVE::BackupBridge::Client::as_text(\@patterns),
    };
    call_guest($self, 'backup_container', $vmid, $params, second => 1);
    return;
}

# Comes without backup_init, without $vmtype and a second time, too [B12].
sub backup_cleanup($self, $vmid, $vmtype, $success, $info) {
    my $params = { success => $success ? JSON::true : JSON::false, info => {} };
    $params->{info}->{error} = "$info->{error}" if defined($info->{error});
    $params->{vmtype} = $vmtype if defined($vmtype);
    my $result = call_guest($self, 'backup_cleanup', $vmid, $params);
    return if !$success;
    return { stats => { 'archive-size' => field('size', $result->{stats}, 'archive-size') } };
}

# A die would skip the remaining guests of the job [B13]; only the end of the job itself may pass.
sub backup_handle_log_file($self, $vmid, $filename) {
    my @call = ($self, 'backup_handle_log_file', $vmid, { path => $filename });
    my $err = PVE::BackupBridge::Client::failure(sub { call_guest(@call) }) // return;
    $self->{log}->('warn', "the task log was not kept with the archive: $err");
    return;
}

# Restore. For containers PVE passes the storage ID, which is known, as a further argument [C2].

sub restore_get_mechanism($self, $volname, @) {
    my $result = call_archive($self, 'restore_get_mechanism', $volname);
    return (field('restore-mechanism', $result, 'mechanism'), field('vmtype', $result));
}

sub archive_get_guest_config($self, $volname, @) {
    my $result = call_archive($self, 'archive_get_guest_config', $volname);
    return decode_base64(field('base64', $result, 'config'));
}

# PVE writes the firewall file before it looks at anything: undef if there is none [C8].
sub archive_get_firewall_config($self, $volname, @) {
    my $result = call_archive($self, 'archive_get_firewall_config', $volname);
    return undef if !defined($result->{config});
    return decode_base64(field('base64', $result, 'config'));
}

sub restore_vm_init($self, $volname, @) {
    my $result = call_archive($self, 'restore_vm_init', $volname, {}, hold => 1);
    my $volumes = {};
    for my $device (keys %$result) {
        die "the backup host returned no valid device name\n" if !match('device-name', $device);
        $volumes->{$device} = { size => field('size', $result->{$device}) };
    }
    return $volumes;
}

# Between volname and device name RFC v3 has a storage ID, too.
my sub device_name(@args) {
    return { 'device-name' => (grep { !ref } @args)[-1] };
}

sub restore_vm_volume_init($self, $volname, @args) {
    my $params = device_name(@args);
    my $result = call_archive($self, 'restore_vm_volume_init', $volname, $params);
    return { 'qemu-img-path' => field('path', $result, 'qemu-img-path') };
}

sub restore_vm_volume_cleanup($self, $volname, @args) {
    call_archive($self, 'restore_vm_volume_cleanup', $volname, device_name(@args));
    return;
}

sub restore_vm_cleanup($self, $volname, @) {
    call_archive($self, 'restore_vm_cleanup', $volname, {}, hold => 0);
    return;
}

sub restore_container_init($self, $volname, @) {
    my $result = call_archive($self, 'restore_container_init', $volname, {}, hold => 1);
    my ($key, @more) = ref($result) eq 'HASH' ? keys %$result : ();
    my $is_known = !@more && ($key // '') =~ m/^(?:tar-path|archive-directory)\z/;
    my $path = $is_known ? match('path', $result->{$key}) : undef;
    return { $key => $path } if defined($path);
    eval { $self->restore_container_cleanup($volname) }; # after a die PVE does not call it [C2]
    die "the backup host returned neither a valid 'tar-path' nor a valid 'archive-directory'\n";
}

sub restore_container_cleanup($self, $volname, @) {
    call_archive($self, 'restore_container_cleanup', $volname, {}, hold => 0);
    return;
}

# RFC v3 (November 2024): its names for the same.

sub job_hook($self, $phase, $info = {}) {
    return $phase eq 'start' ? $self->job_init($info->{'start-time'}) : $self->job_cleanup();
}

sub backup_hook($self, $phase, $vmid, $vmtype, $info = {}) {
    if ($phase eq 'start') {
        my $init = $self->backup_init($vmid, $vmtype, $info->{'start-time'});
        $self->{archive_names}->{$vmid} = $init->{'archive-name'};
    } elsif ($phase eq 'prepare') {
        $self->backup_container_prepare($vmid, $info) if $vmtype eq 'lxc';
    } else {
        $self->backup_cleanup($vmid, $vmtype, $phase eq 'end', $info);
    }
    return;
}

sub backup_get_archive_name($self, $vmid, @) {
    return $self->{archive_names}->{$vmid};
}

sub backup_get_task_size($self, $vmid, @) {
    return $self->backup_cleanup($vmid, undef, 1, {})->{stats}->{'archive-size'};
}

sub restore_get_guest_config($self, @args) {
    return $self->archive_get_guest_config(@args);
}

sub restore_get_firewall_config($self, @args) {
    return $self->archive_get_firewall_config(@args);
}

1;
