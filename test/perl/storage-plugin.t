use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use Scalar::Util qw(tainted);
use Test::More;
use Time::HiRes qw(sleep);

use TestHost qw(behave calls client error_of eventually is_alive scfg timed);
use PVE::Storage::Custom::BridgeDirectoryPlugin;

my $class = 'PVE::Storage::Custom::BridgeDirectoryPlugin';
my $taint = substr("$0$^X", 0, 0); # tainted under -T
my $volname = "backup/100/qemu-2026-11-23T10:06:42Z$taint";
my $container = 'backup/101/lxc-2026-11-23T10:06:42Z';

# Configuration.
is_deeply([calls()], [], 'D1: nothing is started at load time');
is($class->type(), 'bridge-dir', 'type');
{
    no warnings qw(once redefine);
    my $expected = { 9 => 11, 11 => 11, 13 => 13, 15 => 15, 16 => 15 };
    for my $node (sort { $a <=> $b } keys %$expected) {
        local *PVE::Storage::APIVER = sub { $node };
        is($class->api(), $expected->{$node}, "D1: api on a node with version $node");
    }
}
is_deeply(
    $class->plugindata(),
    {
        content => [{ backup => 1, none => 1 }, { backup => 1 }],
        features => { 'backup-provider' => 1 },
        'sensitive-properties' => {},
    },
    'plugindata',
);
is_deeply([keys $class->properties()->%*], ['bridge-dir-compression'], 'D2: own properties only');
is_deeply($class->options()->{path}, { fixed => 1 }, 'options');

# Names.
is_deeply(
    [$class->parse_volname($volname)],
    ['backup', '100/qemu-2026-11-23T10:06:42Z', 100, undef, undef, undef, 'bridge-dir-vm'],
    'D5: parse_volname of a VM',
);
is(($class->parse_volname($container))[6], 'bridge-dir-ct', 'D5: parse_volname of a container');
ok(!grep({ tainted($_) } $class->parse_volname($volname)), 'A2: parse_volname untaints');
is_deeply(
    [$class->path(scfg(), $volname, 'store')],
    ['/srv/store/100/qemu-2026-11-23T10:06:42Z', 100, 'backup'],
    'D6: path below the storage\'s',
);
is(
    scalar($class->path({}, $volname, 'store')),
    'bridge-dir:store/100/qemu-2026-11-23T10:06:42Z', 'D6: path without one',
);
is_deeply([calls()], [], 'D5: names are parsed without a host');

# Calls.
my @store = ('store', scfg());
my @archive = (scfg(), 'store', $volname);
is($class->check_connection(@store), 1, 'check_connection');
is($class->activate_storage(@store, {}), 1, 'activate_storage');
is_deeply([$class->status(@store, {})], [1000, 600, 400, 1], 'D4: status');
my $list = $class->list_volumes(@store, undef, ['backup']);
is_deeply(
    $list,
    [{
        volid => 'store:backup/100/qemu-2026-11-23T10:06:42Z',
        content => 'backup',
        format => 'bridge-dir-vm',
        vmid => 100,
        subtype => 'qemu',
        size => 4096,
        ctime => 1795428402,
        protected => 0,
        notes => "caf\x{e9} \x{2603}",
    }],
    'D5: list_volumes',
);
is_deeply($class->list_volumes(@store, undef, ['images', 'iso']), [], 'D5: other content is none');
is_deeply([$class->volume_size_info(@archive)], [4096, 'bridge-dir-vm', 1024, undef], 'D6: size');
is(scalar($class->volume_size_info(@archive)), 4096, 'D6: size, scalar');
is($class->get_volume_attribute(@archive, 'notes'), "caf\x{e9} \x{2603}", 'D6: notes');
is($class->get_volume_attribute(@archive, 'protected'), 0, 'D6: protected');
is($class->get_volume_attribute(@archive, 'other'), undef, 'D6: another attribute');

my @values = (
    ['status' => $class->status(@store, {})],
    ['list_volumes' => values $list->[0]->%*],
    ['volume_size_info' => $class->volume_size_info(@archive)],
    ['notes' => $class->get_volume_attribute(@archive, 'notes')],
);
for my $value (@values) {
    my ($name, @fields) = @$value;
    ok(!grep({ tainted($_) } @fields), "A2: $name is untainted");
}

$class->update_volume_attribute(@archive, 'notes', "gr\x{fc}n \x{2603}");
is($class->get_volume_attribute(@archive, 'notes'), "gr\x{fc}n \x{2603}", 'B10: notes are set');
$class->update_volume_attribute(@archive, 'notes', '');
is($class->get_volume_attribute(@archive, 'notes'), '', 'D8: empty notes are sent as such');
$class->update_volume_attribute(@archive, 'protected', '1');
is($class->get_volume_attribute(@archive, 'protected'), 1, 'B17: protected is sent as a boolean');
is(
    error_of(sub { $class->free_image(@store, $volname) }),
    "cannot remove protected archive '$volname' on 'store'\n", 'a protected archive is kept',
);
$class->update_volume_attribute(@archive, 'protected', 0);
my $worker = $class->free_image(@store, $volname, undef, 'bridge-dir-vm');
is((calls())[-1] =~ s/^\d+ //r, 'free_image', 'D7: free_image hides the archive');
$worker->();
is((calls())[-1] =~ s/^\d+ //r, 'reclaim_space', 'D7: the space is freed by PVE\'s worker');
like(error_of(sub { $class->update_volume_attribute(@archive, 'x', 1) }), qr/not supported/, 'x');

# What archives cannot do.
for my $method (
    qw(alloc_image clone_image create_base volume_resize volume_snapshot volume_export
    qemu_blockdev_options rename_volume map_volume)
) {
    is(
        error_of(sub { $class->$method('a', 'b', 'c', 'd', 'e') }),
        "storage type 'bridge-dir' keeps archives only: no $method\n", "D1: $method is refused",
    );
}
is_deeply($class->list_images(@store), [], 'list_images');
is($class->get_identity(scfg(), 'store'), '4d6f0e62-store', 'D1: get_identity');
my @hinted = (@store, $volname, undef, {}, { 'plugin-may-deactivate-volume' => 0 });
is($class->activate_volume(@hinted), 1, 'D1: activate_volume ignores hints');
is(
    error_of(sub { $class->activate_volume(@store, $volname, 'snap') }),
    "archives have no snapshots\n", 'activate_volume of a snapshot',
);

# [A12] Polls.
my sub poll($storeid) {
    my @result = (0, 0, 0, 0);
    my ($seconds, $err) = timed(sub {
        return if !$class->check_connection($storeid, scfg());
        $class->activate_storage($storeid, scfg(), {});
        @result = $class->status($storeid, scfg(), {});
    });
    return (\@result, $seconds, $err);
}

{
    local $PVE::BackupBridge::StoragePlugin::POLL_TIMEOUT = 0.3;
    local $PVE::BackupBridge::StoragePlugin::STATE_TIMEOUT = -1;
    $class->status('alone', scfg(), {});
    sleep(0.35);
    my $count = grep { m/ status$/ } calls();
    is(($class->status('alone', scfg(), {}))[3], 1, 'A12: status alone');
    is(scalar(grep { m/ status$/ } calls()), $count + 1, 'A12: is a poll of its own');
}
behave('slow');
my ($result, $seconds, $err) = poll('slow');
is_deeply($result, [0, 0, 0, 0], 'A12: a store that does not answer is inactive');
cmp_ok($seconds, '<', 2.2, 'A12: after 2 s');
is($err, undef, 'A12: without an error');
poll('slow');
is(scalar(grep { m/ start$/ } calls()), 1, 'A12: its host is kept');
is(scalar(grep { m/ check_connection$/ } calls()), 1, 'A12: and not asked again and again');

behave('silent');
($result, $seconds) = poll('silent');
is_deeply($result, [0, 0, 0, 0], 'A12: a host that does not start is inactive');
cmp_ok($seconds, '<', 2.2, 'A12: the start counts');
is($class->check_connection('silent', scfg()), 1, 'B1: a job waits for a host that starts slowly');
is($class->check_connection('slow', scfg()), 0, 'B1: but not for a store that does not answer');

behave('');
($result) = poll('hang');
is_deeply($result, [1000, 600, 400, 1], 'A12: active');
my ($pid) = map { m/^(\d+) start$/ } calls();
kill('STOP', $pid);
($result, $seconds) = poll('hang');
is_deeply($result, [1000, 600, 400, 1], 'A12: the last known state stands in');
cmp_ok($seconds, '<', 2.2, 'A12: for both calls together');
{
    local $PVE::BackupBridge::StoragePlugin::STATE_TIMEOUT = 0.5;
    ($result) = poll('hang');
    is_deeply($result, [0, 0, 0, 0], 'A12: for a while');
}
kill('CONT', $pid);
($result) = poll('hang');
is_deeply($result, [1000, 600, 400, 1], 'A12: a late answer is used');
($result) = poll('hang');
is_deeply($result, [1000, 600, 400, 1], 'A12: and only once');
{
    local $PVE::BackupBridge::Client::PING_TIMEOUT = 3;
    kill('STOP', $pid);
    poll('hang');
    ok(is_alive($pid), 'A12: a host is not killed for one late poll');
    sleep(3.2);
    (undef, undef, $err) = poll('hang');
    like($err, qr/does not answer/, 'A12: but when a ping goes unanswered');
    ok(eventually(sub { !is_alive($pid) }), 'A12: then it is gone');
}

behave('late');
($result, $seconds) = poll('late');
is_deeply($result, [2000, 1600, 400, 1], 'A12: an answer in time is waited for');

# Fields that are none.
behave('bad-fields');
my @bad = ('bad', scfg());
my $bad_archive = [scfg(), 'bad', $volname];
for my $case (
    [status => sub { $class->status(@bad, {}) }, 'total'],
    [list_volumes => sub { $class->list_volumes(@bad, undef, ['backup']) }, 'size'],
    [volume_size_info => sub { $class->volume_size_info(@$bad_archive) }, 'size'],
    )
{
    my ($name, $code, $key) = @$case;
    is(error_of($code), "the backup host returned no valid '$key'\n", "$name: a bad field");
}

done_testing();
