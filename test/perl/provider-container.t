use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use JSON;
use Test::More;

use TestHost qw(behave calls in_userns provider_dir scfg slurp use_host);
use PVE::Storage::Custom::BridgeDirectoryPlugin;

use_host('two-connections.pl');

my $class = 'PVE::Storage::Custom::BridgeDirectoryPlugin';
my $taint = substr("$0$^X", 0, 0); # what PVE reads from files is tainted [A2]
my $config = "#caf\xe9\nmp0: x,mp=/data\n$taint";
my $excludes = [
    "/tmp/?*$taint", # of the job
    "/caf\xc3\xa9/*.bak", # vzdump.conf is read as bytes
    "/sn\x{f6}w \x{2603}", # the command line gives characters
    '',
];
my $info = {
    directory => '/mnt/vzsnap0',
    sources => ['./', "./mnt/caf\xc3\xa9$taint"],
    'backup-user-id' => '100000',
    'firewall-config' => '',
};
my $source = {
    vmid => 100,
    directory => '/mnt/vzsnap0',
    sources => ['./', "./mnt/caf\x{e9}"],
    'backup-user-id' => 100000,
};
my $job = {
    'guest-config' => 'I2NhZukKbXAwOiB4LG1wPS9kYXRhCg==',
    'firewall-config' => '',
    'exclude-patterns' => ['/tmp/?*', "/caf\x{e9}/*.bak", "/sn\x{f6}w \x{2603}"],
    'bandwidth-limit' => 0,
};
my $storeid = 0;
my @log;

my sub provider() {
    behave('');
    @log = ();
    my $log = sub { push @log, "@_" };
    return $class->new_backup_provider(scfg(), 'store' . ++$storeid, $log);
}

my sub start_time($pid) {
    return (split(/ /, slurp("/proc/$pid/stat") =~ s/^.*\) //sr))[19];
}

my sub sent() {
    return JSON->new->utf8->canonical->decode(slurp(provider_dir() . '/params'));
}

my sub asked() {
    return [grep { m/ backup_/ } map { s/^\d+ //r } calls()];
}

# [B8] As root.
{
    no warnings 'redefine';
    my @calls;
    local *PVE::BackupBridge::Client::call = sub ($self, $method, $params, %opts) {
        push @calls, [$method, $params, $opts{second}];
        return {};
    };
    my $provider = provider();
    is($provider->backup_container_prepare('100', $info), undef, 'B8: backup_container_prepare');
    is_deeply(\@calls, [['backup_container_prepare', $source, undef]], 'B8: these keys, no more');
    my $text = JSON->new->canonical->encode($calls[0]->[1]);
    like($text, qr/"backup-user-id":100000,/, 'B17: the user id is a number');
    like($text, qr/"vmid":100}/, 'B17: the vmid is a number');
    $provider->backup_container(100, $config, [], { %$info, 'bandwidth-limit' => '512' });
    is($calls[1]->[2], 1, 'A8: backup_container knows of the second connection');
    $text = JSON->new->canonical->encode($calls[1]->[1]);
    like($text, qr/"bandwidth-limit":512,"caller":\{"pid":\d+,"start-time":\d+\}/, 'B17: numbers');
    like($text, qr/"exclude-patterns":\[\]/, 'B9: no patterns are a list as well');
    delete local $info->{'firewall-config'};
    $provider->backup_container(100, $config, [], $info);
    ok(!exists $calls[2]->[1]->{'firewall-config'}, 'B8: no firewall config, no key');
}

# [A8] Unprivileged: in a child, which tells the host who it is.
{
    my $provider = provider();
    $provider->backup_container_prepare(100, $info);
    my $answer = in_userns(sub {
        my @returned = $provider->backup_container(100, $config, $excludes, $info);
        return { returned => \@returned, log => \@log, pid => $$, time => start_time($$) };
    });
    my $result = $answer->{result} // diag($answer->{error});
    is_deeply($result->{returned}, [], 'A8: nothing is returned');
    is_deeply($result->{log}, ['info backup over 3'], 'A8: the child logs');
    my $caller = { pid => $result->{pid}, 'start-time' => $result->{time} };
    is_deeply(sent(), { %$source, %$job, caller => $caller }, 'A8, B9: what is sent');
    is_deeply(
        asked(), ['0 backup_container_prepare', '3 backup_container'],
        'A8: over the second connection'
    );
    $provider->backup_cleanup(100, 'lxc', 0, { error => 'no' });
    is(asked()->[-1], '0 backup_cleanup', 'A8: the job goes on over the first');
    is_deeply(\@log, [], 'A8: the parent has logged nothing');
}

# [A9] Privileged: in the same process.
{
    my $provider = provider();
    my $root = { %$info, 'backup-user-id' => 0 };
    $provider->backup_container_prepare(100, $root);
    is($provider->backup_container(100, $config, $excludes, $root), undef, 'A9: privileged');
    is_deeply(\@log, ['info backup over 0'], 'A9: over the first connection');
    my $caller = { pid => $$, 'start-time' => start_time($$) };
    is_deeply(
        sent(), { %$source, %$job, caller => $caller, 'backup-user-id' => 0 },
        'A9: what is sent'
    );
}

done_testing();
