use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use Scalar::Util qw(tainted);
use Test::More;

use TestHost qw(behave calls error_of root scfg);
use PVE::Storage::Custom::BridgeDirectoryPlugin;

# The third version of the RFC (November 2024): other names and contexts for the same [design section 3].

my $class = 'PVE::Storage::Custom::BridgeDirectoryPlugin';
my $volname = $TestHost::VOLNAME;
my @sent;
my $answers = {};

my sub provider($behaviour = '') {
    behave($behaviour);
    return $class->new_backup_provider(scfg(), 'store', sub { });
}

# A provider object whose calls go no further; a method's answer is in $answers.
my sub recorded($code) {
    no warnings 'redefine';
    @sent = ();
    local *PVE::BackupBridge::Client::call = sub ($self, $method, $params, %opts) {
        push @sent, [$method, $params];
        my $answer = $answers->{$method} // {};
        return ref($answer) eq 'CODE' ? $answer->($params) : $answer;
    };
    return $code->(provider());
}

my sub methods() {
    return [map { $_->[0] } @sent];
}

# A job, in the RFC's order.
my $provider = provider();
is($provider->job_hook('start', { 'start-time' => 1795428400 }), undef, 'job_hook start');
is(
    $provider->backup_hook('start', '100', 'qemu', { 'start-time' => '1795428402' }),
    undef, 'backup_hook start',
);
is(
    $provider->backup_get_archive_name('100', 'qemu', '1795428402'),
    '100/qemu-2026-11-23T10:06:42Z', 'backup_get_archive_name',
);
my @mechanism = $provider->backup_get_mechanism(100, 'qemu');
is(scalar(@mechanism), 2, 'B5: mechanism and bitmap id');
is($mechanism[0], 'nbd', 'B5: the mechanism');
like($mechanism[1], qr/^store-\d+\z/, 'B5: the id of a bitmap');
my $volumes = {
    'drive-scsi0' => {
        size => '4096',
        'bitmap-mode' => 'new',
        'bitmap-name' => $mechanism[1],
        'nbd-path' => '/run/nbd.sock',
    },
};
is($provider->backup_vm(100, "name: x\n", $volumes, {}), undef, 'backup_vm');
is($provider->backup_hook('end', 100, 'qemu'), undef, 'backup_hook end, without info');
is($provider->backup_get_task_size(100), 4096, 'backup_get_task_size');
is($provider->backup_hook('abort', 100, undef, { error => "no\n" }), undef, 'backup_hook abort');
is($provider->job_hook('abort', { error => "no\n" }), undef, 'job_hook abort');
is($provider->job_hook('end'), undef, 'job_hook end, without info');
is_deeply(
    [map { s/^\d+ //r } calls()],
    [
        qw(start open job_init backup_init backup_get_mechanism backup_vm_query_incremental backup_vm),
        qw(backup_cleanup backup_cleanup backup_cleanup job_cleanup job_cleanup),
    ],
    'what the host is asked',
);

# The phases.
recorded(sub ($provider) {
    my $source = { directory => '/mnt/x', sources => ['./'], 'backup-user-id' => '100000' };
    $provider->backup_hook('prepare', 200, 'lxc', $source);
    is_deeply(methods(), ['backup_container_prepare'], 'prepare, of a container');
    is($sent[0]->[1]->{directory}, '/mnt/x', 'with what it is told');
    @sent = ();
    $provider->backup_hook('prepare', 100, 'qemu', {});
    is_deeply(\@sent, [], 'prepare, of a VM: nothing');
    $provider->backup_hook('abort', 200, undef, { error => "caf\xc3\xa9" });
    my $params = $sent[0]->[1];
    ok(!$params->{success}, 'abort is no success');
    is($params->{info}->{error}, "caf\xc3\xa9", 'and has the error');
    ok(!exists($params->{vmtype}), 'B12: and no type');
});
$answers = { backup_get_mechanism => { mechanism => 'directory' } };
recorded(sub ($provider) {
    is_deeply(
        [$provider->backup_get_mechanism(200, 'lxc')], ['directory'],
        'no bitmap: containers'
    );
});

# The bitmap: its id stays the same while the provider can use it for every disk.
my $is_usable = sub { return 'use' };
$answers = {
    backup_get_mechanism => { mechanism => 'nbd' },
    backup_vm_query_incremental => sub ($params) {
        my $sizes = $params->{volumes};
        return { map { $_ => $is_usable->($_, $sizes->{$_}->{size}) } keys %$sizes };
    },
};
my sub id_of($provider) {
    my (undef, $id) = $provider->backup_get_mechanism('100', 'qemu');
    ok(!tainted($id), 'A2: the id is untainted');
    return $id;
}
my sub volumes($mode, %sizes) {
    return { map { $_ => { size => $sizes{$_}, 'bitmap-mode' => $mode } } keys %sizes };
}
my sub back_up($mode, %sizes) {
    return recorded(sub ($provider) {
        my $id = id_of($provider);
        my $err = error_of(sub { $provider->backup_vm('100', '', volumes($mode, %sizes), {}) });
        return ($id, $err);
    });
}
# Ids are seconds.
my sub forged() {
    my $file = root() . '/run/pve-backup-bridge/bitmaps/store/100.id';
    my $text = TestHost::slurp($file);
    TestHost::write_file($file, $text =~ s/^\S+/old-id/r);
}
my @two = ('drive-scsi0' => 4096, 'drive-scsi1' => 8192);
is((back_up('new', @two))[1], undef, 'a first backup');
forged();
my ($id, $err) = back_up('reuse', @two);
is($id, 'old-id', 'a usable bitmap keeps its id');
is($err, undef, 'and is used');
is_deeply(
    methods(),
    [
        qw(backup_get_mechanism backup_vm_query_incremental backup_vm_query_incremental backup_vm)
    ],
    'the plan is asked for by the sizes of then, and of now',
);
$is_usable = sub ($device, $size) { return $device eq 'drive-scsi1' ? 'new' : 'use' };
($id, $err) = back_up('new', @two);
isnt($id, 'old-id', 'one disk whose bitmap is of no use: a new id');
is($err, undef, 'and a new bitmap');

# A disk that has grown comes with a bitmap that does not tell of its new tail [E8].
$is_usable = sub ($device, $size) { return $size == 4096 ? 'use' : 'new' };
is((back_up('new', 'drive-scsi0' => 4096))[1], undef, 'before it grew');
forged();
($id, $err) = back_up('reuse', 'drive-scsi0' => 6144);
is($id, 'old-id', 'nobody knows yet');
is(
    $err,
    "drive-scsi0 was resized, or its last backup is gone: start again to read all of it\n",
    'a resized disk',
);
ok(!grep({ $_ eq 'backup_vm' } methods()->@*), 'nothing is backed up');
isnt((back_up('new', 'drive-scsi0' => 6144))[0], 'old-id', 'the next backup gets a new bitmap');

# A block device is a path, whose dirty regions are the caller's to tell.
recorded(sub ($provider) {
    id_of($provider);
    my $regions = [[0, 4096]];
    my $volume = {
        size => '4096',
        'bitmap-mode' => 'new',
        path => '/dev/loop7',
        'next-dirty-region' => sub { return (shift(@$regions) // [])->@* },
    };
    my $disk = { 'drive-scsi0' => $volume };
    no warnings 'redefine';
    my $told;
    my $call = \&PVE::BackupBridge::Client::call;
    local *PVE::BackupBridge::Client::call = sub ($self, $method, $params, %opts) {
        $told = $opts{requests}->{volume_next_dirty_regions}
            ->({ device => 'drive-scsi0', max => 10 }) if $opts{requests};
        return $call->($self, $method, $params, %opts);
    };
    $provider->backup_vm('100', '', $disk, {});
    is_deeply(
        $sent[-1]->[1]->{volumes},
        {
            'drive-scsi0' =>
                { size => 4096, 'bitmap-mode' => 'new', 'block-device' => '/dev/loop7' }
        },
        'B7: a block device',
    );
    is_deeply($told, [[0, 4096]], 'B7: and its dirty regions');
});

# Released callers ask for themselves.
recorded(sub ($provider) {
    is(scalar($provider->backup_get_mechanism(100, 'qemu')), 'nbd', 'B5: a scalar');
    $provider->backup_vm(100, '', volumes('reuse', 'drive-scsi0' => 6144), {});
    is_deeply(methods(), [qw(backup_get_mechanism backup_vm)], 'and nothing is planned here');
});

# A restore: the storage ID comes second everywhere.
$provider = provider();
my @archive = ($volname, 'store');
is_deeply([$provider->restore_get_mechanism(@archive)], ['qemu-img', 'qemu'], 'mechanism');
is(
    $provider->restore_get_guest_config(@archive), "\0\xff\x0a#qmdump#map:\x0a\xc3\xa9",
    'B16: restore_get_guest_config',
);
is_deeply([$provider->restore_get_firewall_config(@archive)], [undef], 'C8: no firewall config');
my $disks = $provider->restore_vm_init(@archive, {});
is_deeply($disks, { 'drive-scsi0' => { size => 4096 } }, 'restore_vm_init');
my $image = $provider->restore_vm_volume_init(@archive, 'drive-scsi0', {});
is_deeply($image, { 'qemu-img-path' => '/run/image.raw' }, 'restore_vm_volume_init');
is($provider->restore_vm_volume_cleanup(@archive, 'drive-scsi0', {}), undef, 'volume cleanup');
is($provider->restore_vm_cleanup(@archive, {}), undef, 'restore_vm_cleanup');
recorded(sub ($provider) {
    $provider->$_(@archive, 'drive-scsi0', {})
        for qw(restore_vm_volume_cleanup restore_vm_volume_cleanup);
    is($_->[1]->{'device-name'}, 'drive-scsi0', 'the device, not the storage') for @sent;
});

done_testing();
