#!/usr/bin/perl

# Every method of a storage plugin and of its provider, once, on the storage of storage.cfg. `--process child` calls
# them in a child that was forked from a process with a host of its own [A5]. Prints JSON, { methods => { NAME =>
# what came of it }, base => [subs of the base class], warnings }: "works", "refuses: …" or "BROKEN: …".

use v5.36;

use JSON ();
use POSIX ();
use Scalar::Util qw(tainted);

my @warnings;

BEGIN {
    require Fixture::Options;
    Fixture::Options::take(\@ARGV);
    $SIG{__WARN__} = sub { push @warnings, @_ };
}

use PVE::RPCEnvironment;
use PVE::Storage;

use Fixture::Contract;

my $opts = Fixture::Options::parse(\@ARGV, 'process=s');
my $has_hints = Fixture::Options::get('apiver') >= 13;
my $taint = substr("$0$^X", 0, 0); # tainted under -T
my $storeid = "vault$taint";
my $cfg = PVE::Storage::config();
my $scfg = PVE::Storage::storage_config($cfg, 'vault');
my $plugin = PVE::Storage::Plugin->lookup($scfg->{type});
my $volname = "backup/100/qemu-2026-11-23T10:06:42Z$taint";
my @store = ($storeid, $scfg);
my @archive = ($scfg, $storeid, $volname);
my $hints = { 'plugin-may-deactivate-volume' => 0 };
my $log = sub { };
my $time = 1795428402;
my $guest_config = "name: g\xc3\xbcest\n#qmdump#map:scsi0:drive-scsi0:local:raw:\n$taint";

my $source = {
    directory => '/srv/root',
    sources => ['./', './mnt/data'],
    'backup-user-id' => 100000,
    'bandwidth-limit' => 0,
    'firewall-config' => "enable: 1\n$taint",
};
my $volume = {
    size => '4096',
    'bitmap-mode' => 'none',
    'bitmap-name' => undef,
    'nbd-path' => '/run/x.sock',
};

# Method and arguments, in the order of a storage's life.
my @storage = (
    [map { [$_] } qw(api type plugindata properties options private)]->@*,
    [on_add_hook => @store],
    [check_connection => @store],
    [activate_storage => @store, {}],
    [status => @store, {}],
    [get_formats => $scfg, $storeid],
    [cluster_lock_storage => 'vault', 0, 5, sub { return 1 }],
    [list_volumes => @store, undef, ['backup']],
    [list_images => @store, undef, undef, {}],
    [parse_volname => $volname],
    [path => $scfg, $volname, $storeid, undef],
    [get_subdir => $scfg, 'backup'],
    [volume_size_info => @archive, 5],
    [get_volume_attribute => @archive, 'notes'],
    [update_volume_attribute => @archive, 'notes', "gr\x{fc}n \x{2603}$taint"],
    [update_volume_attribute => @archive, 'protected', '0'],
    [volume_has_feature => $scfg, 'copy', $storeid, $volname, undef, 0],
    [volume_snapshot_needs_fsfreeze => ()],
    [storage_can_replicate => $scfg, $storeid, 'raw'],
    [volume_export_formats => @archive, undef, undef, 0],
    [volume_import_formats => @archive, undef, undef, 0],
    [activate_volume => @store, $volname, undef, {}, $has_hints ? $hints : ()],
    [map_volume => @store, $volname, undef, $has_hints ? $hints : ()],
    [unmap_volume => @store, $volname, undef],
    [deactivate_volume => @store, $volname, undef, {}],
    [prune_backups => $scfg, $storeid, { 'keep-last' => 1 }, undef, undef, 0, $log],
    [free_image => @store, $volname, undef, 'bridge-dir-vm'],
    [get_identity => $scfg, $storeid],
    [alloc_image => @store, 100, 'raw', undef, 1024],
    [clone_image => $scfg, $storeid, $volname, 101, undef],
    [create_base => $storeid, $scfg, $volname],
    [filesystem_path => $scfg, $volname, undef],
    [find_free_diskname => $storeid, $scfg, 100, 'raw', 1],
    [get_volume_notes => @archive, 5],
    [update_volume_notes => @archive, 'notes', 5],
    [qemu_blockdev_options => @archive, undef, {}],
    [rename_snapshot => @archive, 'one', 'two'],
    [rename_volume => @archive, 101, undef],
    [volume_export => $scfg, $storeid, \*STDOUT, $volname, 'raw+size', undef, undef, 0],
    [
        volume_import => $scfg, $storeid, \*STDIN, $volname, 'raw+size', undef, undef, 0, 0,
    ],
    [volume_qemu_snapshot_method => $storeid, $scfg, $volname],
    [volume_resize => @archive, 8192, 0, undef],
    [volume_rollback_is_possible => @archive, 'one', []],
    [volume_snapshot => @archive, 'one'],
    [volume_snapshot_delete => @archive, 'one', 0],
    [volume_snapshot_info => @archive],
    [volume_snapshot_rollback => @archive, 'one'],
    [on_update_hook => $storeid, { type => $scfg->{type} }],
    [on_update_hook_full => @store, { type => $scfg->{type} }, undef, {}],
    [deactivate_storage => @store, {}],
    [on_delete_hook => @store],
    [new_backup_provider => $scfg, $storeid, $log],
);

my @provider = (
    [provider_name => ()],
    [job_init => $time],
    [backup_init => 100, 'qemu', $time],
    [backup_get_mechanism => 100, 'qemu'],
    [backup_vm_query_incremental => 100, { 'drive-scsi0' => { size => '4096' } }],
    [backup_vm => 100, $guest_config, { 'drive-scsi0' => $volume }, $source],
    [backup_cleanup => 100, 'qemu', 1, {}],
    [backup_container_prepare => 101, $source],
    [backup_container => 101, $guest_config, ['/tmp/?*'], $source],
    [backup_handle_log_file => 100, '/var/log/vzdump/qemu-100.log'],
    [job_cleanup => ()],
    [restore_get_mechanism => $volname, $storeid],
    [archive_get_guest_config => $volname, $storeid],
    [archive_get_firewall_config => $volname, $storeid],
    [restore_vm_init => $volname],
    [restore_vm_volume_init => $volname, 'drive-scsi0', {}],
    [restore_vm_volume_cleanup => $volname, 'drive-scsi0', {}],
    [restore_vm_cleanup => $volname],
    [restore_container_init => $volname, $storeid, {}],
    [restore_container_cleanup => $volname, $storeid, {}],
    [job_hook => 'start', { 'start-time' => $time }],
    [backup_hook => 'start', 100, 'qemu', { 'start-time' => $time }],
    [backup_get_archive_name => 100, 'qemu'],
    [backup_get_task_size => 100],
    [restore_get_guest_config => $volname, $storeid],
    [restore_get_firewall_config => $volname, $storeid],
);

# In list context, as PVE calls those.
my $wants_list =
    { map { $_ => 1 } qw(parse_volname path restore_get_mechanism status volume_size_info) };

my sub outcome($object, $method, @args) {
    my $is_refusal = qr/\A[^\n]+\n\z/;
    my @result;
    my $lived = eval {
        @result =
            $wants_list->{$method} ? $object->$method(@args) : scalar($object->$method(@args));
        $result[0]->() if $method eq 'free_image' && ref($result[0]); # the worker's part [D7]
        1;
    };
    my $err = $@;
    return 'BROKEN: ' . $err =~ s/\n/ /gr
        if !$lived && ($err !~ $is_refusal || $err =~ m/ at \S+ line \d+\.|^contract breach/);
    return "refuses: $err" =~ s/\n\z//r if !$lived;
    my @warned = splice(@warnings);
    return "BROKEN: warns @warned" if @warned;
    return 'BROKEN: returns something tainted' if grep { tainted($_) } @result;
    return 'works';
}

my sub call_all($provider) {
    my $outcomes = {};
    for my $list (['storage', $plugin, @storage], ['provider', $provider, @provider]) {
        my ($kind, $object, @calls) = @$list;
        for my $call (grep { $object->can($_->[0]) } @calls) {
            my $name = "$kind $call->[0]";
            my $outcome = outcome($object, @$call);
            $outcomes->{$name} = $outcome if ($outcomes->{$name} // 'works') eq 'works';
        }
    }
    return $outcomes;
}

my sub subs_of($class) {
    no strict 'refs'; ## no critic (ProhibitNoStrict)
    return [sort grep { m/^[a-z]/ && defined(&{"${class}::$_"}) } keys %{"${class}::"}];
}

my @load_warnings = splice(@warnings);
my $provider = PVE::Storage::new_backup_provider($cfg, $storeid, $log);
my $outcomes;
if ($opts->{process} eq 'child') {
    $plugin->check_connection(@store);
    pipe(my $reader, my $writer) or die "pipe - $!\n";
    my $pid = fork() // die "fork - $!\n";
    if (!$pid) {
        print $writer JSON::encode_json(call_all($provider));
        close($writer);
        POSIX::_exit(0);
    }
    close($writer);
    local $/ = undef;
    $outcomes = JSON::decode_json(<$reader>);
    waitpid($pid, 0);
    # The parent's own host goes on undisturbed.
    $outcomes->{'storage status, in the parent afterwards'} =
        outcome($plugin, 'status', $storeid, $scfg, {});
} else {
    $outcomes = call_all($provider);
}
my $answer = { methods => $outcomes, warnings => \@load_warnings };
$answer->{base} = subs_of('PVE::Storage::Plugin');
print JSON->new->utf8->canonical->encode($answer) . "\n";
