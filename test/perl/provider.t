use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use Scalar::Util qw(tainted);
use Test::More;

use TestHost qw(behave calls error_of root scfg);
use PVE::Storage::Custom::BridgeDirectoryPlugin;

my $class = 'PVE::Storage::Custom::BridgeDirectoryPlugin';
my $volname = $TestHost::VOLNAME;
my @log;
my $storeid = 0;

my sub provider($behaviour = '') {
    behave($behaviour);
    @log = ();
    my $log = sub { push @log, "@_" };
    return $class->new_backup_provider(scfg(), 'store' . ++$storeid, $log);
}

# A job.
my $provider = provider();
isa_ok($provider, 'PVE::BackupProvider::Plugin::Base');
is($provider->provider_name(), 'Directory', 'B4: provider_name');
is_deeply([calls()], [], 'A4: new starts nothing');
is($provider->job_init(1795428400), undef, 'B2: job_init');
is_deeply(
    $provider->backup_init('100', 'qemu', '1795428402'),
    { 'archive-name' => '100/qemu-2026-11-23T10:06:42Z' }, 'B3: backup_init',
);
is(scalar($provider->backup_get_mechanism(100, 'qemu')), 'nbd', 'B5: backup_get_mechanism');
is_deeply(
    $provider->backup_vm_query_incremental(100, { 'drive-scsi0' => { size => '4096' } }),
    { 'drive-scsi0' => 'new' }, 'B6: backup_vm_query_incremental',
);
is(
    error_of(sub { $provider->backup_vm_query_incremental(100, {}) }),
    "VM 100 has no disk that is included in backups: include one\n", 'B6: no disk',
);
my $volumes = {
    'drive-scsi0' => {
        size => '4096',
        'bitmap-mode' => 'none',
        'bitmap-name' => undef,
        'nbd-path' => '/run/nbd.sock',
    },
};
my $config = "\x00\xffname: x\n#qmdump#map:\n";
is($provider->backup_vm(100, $config, $volumes, {}), undef, 'B7: backup_vm');
is_deeply(
    $provider->backup_cleanup(100, 'qemu', 1, {}),
    { stats => { 'archive-size' => 4096 } }, 'B11: backup_cleanup',
);
is($provider->backup_cleanup(100, undef, 0, { error => "no\n" }), undef, 'B12: after a failure');
is($provider->backup_handle_log_file(100, '/var/log/x'), undef, 'B13: never dies');
is_deeply(
    \@log, ['warn the task log was not kept with the archive: the store is full'],
    'B13: but warns',
);
is($provider->job_cleanup(), undef, 'B14: job_cleanup');

# What is sent.
{
    no warnings 'redefine';
    my $sent;
    local *PVE::BackupBridge::Client::call = sub ($self, $method, $params, %opts) {
        $sent = { method => $method, params => $params, log => $opts{log} };
        return {};
    };
    my $info = { 'bandwidth-limit' => '1024', 'firewall-config' => "[OPTIONS]\n\xe9" };
    $provider->backup_vm('100', $config, $volumes, $info);
    my $params = $sent->{params};
    is($params->{'guest-config'}, 'AP9uYW1lOiB4CiNxbWR1bXAjbWFwOgo=', 'B16: the config is bytes');
    is($params->{'firewall-config'}, 'W09QVElPTlNdCuk=', 'B8: the firewall config as well');
    my $text = JSON->new->canonical->encode($params);
    like($text, qr/"size":4096,?[}"]?/, 'B17: sizes are numbers');
    like($text, qr/"vmid":100[,}]/, 'B17: the vmid is a number');
    like($text, qr/"bandwidth-limit":1024[,}]/, 'B17: the limit is a number');
    like($text, qr/"bitmap-name":null/, 'B7: no bitmap, no name');
    ok($sent->{log}, 'a job logs');
    eval { $provider->archive_get_guest_config($volname) };
    ok(!$sent->{log}, 'A11: the extraction of a config does not');
    $provider->restore_vm_init($volname);
    ok(!$sent->{log}, 'A11: nor a restore');
    $provider->backup_cleanup('100', 'qemu', '', { error => "caf\xc3\xa9" });
    $text = JSON->new->canonical->encode($sent->{params});
    like($text, qr/"success":false/, 'B17: success is a boolean');
}

# A restore.
$provider = provider();
is_deeply([$provider->restore_get_mechanism($volname)], ['qemu-img', 'qemu'], 'C1: mechanism');
is(
    $provider->archive_get_guest_config($volname), "\0\xff\x0a#qmdump#map:\x0a\xc3\xa9",
    'B16: the config comes back byte-exact'
);
is_deeply([$provider->archive_get_firewall_config($volname)], [undef], 'C8: no firewall config');
is_deeply(
    [$provider->restore_get_mechanism($volname, 'store')], ['qemu-img', 'qemu'],
    'C2: with a storage ID',
);
like($provider->archive_get_guest_config($volname, 'store'), qr/qmdump/, 'C2: the same');
is($provider->archive_get_firewall_config($volname, 'store'), undef, 'C2: and here');
my $disks = $provider->restore_vm_init($volname);
is_deeply($disks, { 'drive-scsi0' => { size => 4096 } }, 'C1: restore_vm_init');
my $image = $provider->restore_vm_volume_init($volname, 'drive-scsi0', {});
is_deeply($image, { 'qemu-img-path' => '/run/image.raw' }, 'C1: restore_vm_volume_init');
is($provider->restore_vm_volume_cleanup($volname, 'drive-scsi0', {}), undef, 'C1: volume cleanup');
is($provider->restore_vm_cleanup($volname), undef, 'C1: restore_vm_cleanup');
is_deeply(\@log, [], 'A11: nothing was logged');
ok(!tainted($disks->{'drive-scsi0'}->{size}), 'A2: the size is untainted');
ok(!tainted($image->{'qemu-img-path'}), 'A2: the path is untainted');
ok(!tainted($_), 'A2: the mechanism is untainted') for $provider->restore_get_mechanism($volname);
ok(!tainted($provider->archive_get_guest_config($volname)), 'A2: the config is untainted');

# A restore of a container, with and without the storage ID.
my $container = $volname =~ s/qemu/lxc/r;
for my $storeids ([], ['store']) {
    my @args = ($container, @$storeids, {});
    my $form = @$storeids ? 'with' : 'without';
    $provider = provider();
    my $init = $provider->restore_container_init(@args);
    is_deeply($init, { 'tar-path' => '/run/archive.tar.zst' }, "C2: a tar file $form a storage ID");
    ok(!tainted($init->{'tar-path'}), 'A2: the path is untainted');
    is($provider->restore_container_cleanup(@args), undef, "C2: cleanup $form a storage ID");
    my @asked = map { s/^\d+ //r } calls();
    my @expected = ('start', 'open', 'restore_container_init', 'restore_container_cleanup');
    is_deeply(\@asked, \@expected, 'C2: and no more');
    $provider = provider('directory');
    $init = $provider->restore_container_init(@args);
    is_deeply(
        $init, { 'archive-directory' => "/srv/sn\x{f6}w" },
        "C2: a directory $form a storage ID"
    );
    ok(!tainted($init->{'archive-directory'}), 'A2: the path is untainted');
}
is_deeply(\@log, [], 'A11: nothing was logged');

# [C2] What is no path is refused, and released: PVE calls no cleanup then.
for my $bad (qw(relative-path newline two-keys other-key nested nothing list)) {
    $provider = provider($bad);
    is(
        error_of(sub { $provider->restore_container_init($container, 'store', {}) }),
        "the backup host returned neither a valid 'tar-path' nor a valid 'archive-directory'\n",
        "restore_container_init: $bad",
    );
    is(scalar(grep { m/ restore_container_cleanup$/ } calls()), 1, "C2: $bad is released");
}

for my $bad ("backup/../../etc/passwd", "backup/100/qemu-x\n", 'nonsense') {
    like(
        error_of(sub { $provider->archive_get_guest_config($bad) }),
        qr/^unable to parse bridge volume name '[^\n]*'\n\z/, 'a bad volname',
    );
}

# Fields that are none.
$provider = provider('bad-fields');
for my $case (
    [backup_init => [100, 'qemu', 1], 'archive-name'],
    [backup_get_mechanism => [100, 'qemu'], 'mechanism'],
    [backup_vm_query_incremental => [100, { 'drive-scsi0' => { size => 1 } }], 'drive-scsi0'],
    [backup_cleanup => [100, 'qemu', 1, {}], 'archive-size'],
    [restore_get_mechanism => [$volname], 'mechanism'],
    [archive_get_guest_config => [$volname], 'config'],
    [restore_vm_init => [$volname], 'size'],
    [restore_vm_volume_init => [$volname, 'drive-scsi0', {}], 'qemu-img-path'],
    )
{
    my ($method, $args, $key) = @$case;
    is(
        error_of(sub { $provider->$method(@$args) }),
        "the backup host returned no valid '$key'\n", "$method: a bad field",
    );
}

# [B13] A signal ends the job even there.
{
    $provider = provider('slow');
    local $SIG{ALRM} = sub { die "interrupted by signal\n" };
    alarm(1);
    is(
        error_of(sub { $provider->backup_handle_log_file(100, '/var/log/x') }),
        "interrupted by signal\n", 'A3: a signal passes through backup_handle_log_file',
    );
}

done_testing();
