use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use Fcntl qw(S_IMODE);
use JSON;
use Test::More;

use TestHost qw(error_of eventually is_alive provider_dir put_manifest root slurp timed write_file);

# A storage type that has secrets: one that it cannot do without, one that it can.
my $manifest = {
    type => 'acme',
    title => 'ACME Vault',
    version => '1.0.0',
    'archive-name' => '{vmid}/{vmtype}-{time}',
    properties => {
        'acme-token' => { type => 'string', description => 'Token' },
        'acme-key' => { type => 'string', description => 'Key' },
    },
    options => { 'acme-token' => {}, 'acme-key' => { optional => 1 }, content => {} },
    sensitive => ['acme-token', 'acme-key'],
};
my $class = 'AcmePlugin';

require PVE::BackupBridge::StoragePlugin;
@AcmePlugin::ISA = ('PVE::BackupBridge::StoragePlugin');
sub AcmePlugin::type { return 'acme' }

put_manifest('acme', encode_json($manifest));
mkdir($_) for map { root() . $_ } qw(/etc /etc/pve /etc/pve/priv);
my $directory = root() . '/etc/pve/priv/storage';
my $scfg = { type => 'acme' };
my $taint = substr("$0$^X", 0, 0); # tainted under -T

my sub behave($what) {
    write_file(provider_dir('acme') . '/behaviour', $what);
    write_file(provider_dir('acme') . '/calls', '');
}
my sub calls() { return split(/\n/, slurp(provider_dir('acme') . '/calls')) }

# The files there are with their content.
my sub secrets() {
    opendir(my $dir, $directory) or return {};
    return { map { $_ => slurp("$directory/$_") } grep { m/^[^.]/ } readdir($dir) };
}

my sub mode($path) { return sprintf('%o', S_IMODE((stat($path))[2])) }

my sub pid($storeid) {
    my $client = PVE::BackupBridge::Client->new('acme', $storeid, $scfg);
    return $client->call('process', {})->{pid};
}

is_deeply(
    $class->options(),
    { 'acme-token' => { optional => 1 }, 'acme-key' => { optional => 1 }, content => {} },
    'D3: PVE must not look for a secret in storage.cfg',
);

# Adding.
behave('');
for my $given ({}, { 'acme-key' => 'k' }, { 'acme-token' => undef }) {
    is(
        error_of(sub { $class->on_add_hook('vault', $scfg, %$given) }),
        "storage 'vault' needs a value for 'acme-token'\n", 'D3: a secret that is needed',
    );
}
is_deeply([secrets(), [calls()]], [{}, []], 'D3: then nothing is written and no host started');

my %sensitive = ('acme-token' => "gr\x{fc}n \x{2603}$taint", 'acme-key' => "line 1\nline 2\n");
is($class->on_add_hook("vault$taint", $scfg, %sensitive), undef, 'D3: on_add_hook');
my $token = "vault.acme-token";
is_deeply(
    secrets(),
    { $token => "gr\xc3\xbcn \xe2\x98\x83\n", 'vault.acme-key' => "line 1\nline 2\n\n" },
    'D3: one file for each secret',
);
is_deeply(
    [map { mode("$directory/$_") } sort keys secrets()->%*], ['600', '600'],
    'only root reads them'
);
is(mode($directory), '700', 'in a directory of root\'s');
is(scalar(grep { m/ on_add_hook\z/ } calls()), 1, 'D3: the host has been asked');

# Changing. A warm host would go on with the secrets that it has read.
my $pid = pid('vault');
is(pid('vault'), $pid, 'a warm host is kept');
is($class->on_update_hook_full('vault', $scfg, {}, undef, {}), undef, 'D3: on_update_hook_full');
is(pid('vault'), $pid, 'as long as its secrets are the same');
my $inode = (stat("$directory/$token"))[1];
$class->on_update_hook_full('vault', $scfg, {}, undef, { 'acme-token' => "new$taint" });
isnt((stat("$directory/$token"))[1], $inode, 'D3: a secret is replaced, not overwritten');
is(secrets()->{$token}, "new\n", 'D3: it is set');
my $next = pid('vault');
isnt($next, $pid, 'D3: its host is replaced');
ok(eventually(sub { !is_alive($pid) }), 'D3: and gone');
$class->on_update_hook('vault', { type => 'acme' }, 'acme-key' => "old node$taint");
is(secrets()->{'vault.acme-key'}, "old node\n", 'D3: on_update_hook of older nodes');
isnt(pid('vault'), $next, 'D3: replaces the host as well');
$class->on_update_hook_full('vault', $scfg, {}, ['acme-key'], { 'acme-key' => undef });
is_deeply(secrets(), { $token => "new\n" }, 'D3: a secret that is deleted has the value undef');
$class->on_update_hook_full('vault', $scfg, {}, ['acme-key'], { 'acme-key' => undef });
is(
    error_of(
        sub { $class->on_update_hook('vault', {}, 'acme-key' => 'x', 'acme-token' => undef) }
    ),
    "storage 'vault' needs a value for 'acme-token'\n", 'D3: what is needed stays',
);
is_deeply(secrets(), { $token => "new\n" }, 'D3: nothing else is changed then');

# Removing.
my @others =
    qw(vault2.acme-token vault.2.acme-token xvault.acme-token vault.pw vault.acme-token.txt);
write_file("$directory/$_", 'x') for @others;
write_file("$directory/$_", 'x') for 'vault.acme-old', 'vault.password', 'vault.acme-key.tmp.123';
$pid = pid('vault');
is($class->on_delete_hook("vault$taint", $scfg), undef, 'D3: on_delete_hook');
is_deeply([sort keys secrets()->%*], [sort @others], 'D3: removes its own secrets, all of them');
ok(eventually(sub { !is_alive($pid) }), 'D3: and ends the host');
is($class->on_delete_hook('vault', $scfg), undef, 'D3: twice');
unlink("$directory/$_") for @others;

# What fails when a storage is added leaves nothing.
write_file("$directory/vault.acme-key", "of one before\n");
behave('refuse-add');
is(
    error_of(sub { $class->on_add_hook('vault', $scfg, 'acme-token' => 't') }),
    "the store is full\n", 'D3: the host\'s error passes unchanged',
);
is_deeply(secrets(), {}, 'D3: the secrets are gone, those of an earlier storage as well');
($pid) = map { m/^(\d+) start$/ } calls();
ok(eventually(sub { !is_alive($pid) }), 'D3: and the host');

behave('slow');
{
    no warnings qw(once);
    local $PVE::BackupBridge::StoragePlugin::ADD_TIMEOUT = 3;
    local $SIG{ALRM} = sub { };
    my @told;
    local $SIG{__WARN__} = sub { push @told, @_ };
    alarm(60);
    my ($seconds, $err) = timed(sub { $class->on_add_hook('vault', $scfg, 'acme-token' => 't') });
    my $left = alarm(0);
    like(
        $err, qr/\Athe store of 'vault' was not ready in 3 s: [^\n]+\n\z/,
        'D3: it takes too long'
    );
    cmp_ok($seconds, '<', 2.5, 'D3: the check of the connection could still follow');
    is_deeply(\@told, ["working\n"], 'D3: what the host says is told');
    cmp_ok($left, '>', 55, 'D3: PVE\'s alarm is PVE\'s');
    is_deeply(secrets(), {}, 'D3: nothing stays');
}

my $stopped;
{
    local $SIG{__WARN__} = sub { };
    local $SIG{ALRM} = sub { die "got lock request timeout\n" };
    alarm(1);
    $stopped = error_of(sub { $class->on_add_hook('vault', $scfg, 'acme-token' => 't') });
    alarm(0);
}
is($stopped, "got lock request timeout\n", 'D3: PVE\'s own end of it passes unchanged');
is_deeply(secrets(), {}, 'D3: nothing stays then');

done_testing();
