use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use POSIX ();
use Socket;
use Test::More;
use Time::HiRes qw(sleep);

use TestHost qw(behave calls client error_of eventually host_pid is_alive root slurp timed);

# [A4] Nothing is started before the first call.
my $client = client();
is_deeply([calls()], [], 'A4: new starts no host');

# [A5] A host inherits nothing.
{
    open(my $inherited, '<', '/dev/zero') or die;
    pipe(my $read, my $write) or die;
    use Fcntl qw(F_GETFD F_SETFD);
    fcntl($_, F_SETFD, 0) for $inherited, $read, $write; # as fork_worker's pipes
    local $ENV{PVE_SECRET} = 'x';
    my $process = $client->call('process', {});
    my %links = $process->{descriptors}->%*;
    my @extra = grep { $_ > 3 && $links{$_} !~ m!/misbehave\.pl$|/proc/\d+/fd$! } keys %links;
    is_deeply(\@extra, [], 'A5: no other descriptor is open in the host');
    like($links{0}, qr/^socket:/, 'A5: fd 0 is the socketpair');
    is($links{1}, $links{0}, 'A5: fd 1 is the same');
    like($links{3}, qr/^socket:/, 'A8: fd 3 is a socketpair');
    isnt($links{3}, $links{0}, 'A8: of its own');
    is($links{2}, root() . '/var/log/pve-backup-bridge/store.log', 'A5: fd 2 is the log file');
    is_deeply(
        $process->{environment},
        { PATH => '/usr/sbin:/usr/bin:/sbin:/bin', LANG => 'C.UTF-8' },
        'A5: the environment is literal',
    );
    is(sprintf('%o', $process->{umask}), '77', 'A5: umask is 077');
    is($process->{cwd}, '/', 'A5: the working directory is /');
    is($process->{blocked}, '0' x 16, 'A5: no signal is blocked');
    my ($own_session) = slurp("/proc/$$/stat") =~ m/^\d+ \(.*\) \S \d+ \d+ (\d+)/s;
    isnt($process->{session}, $own_session, 'A5: the host is in a session of its own');
    is($process->{arguments}->[0], '--root', 'the root is handed on');
    is(-s root() . '/var/log/pve-backup-bridge/store.log', 0, 'the log file exists');
    my $mode = (stat(root() . '/var/log/pve-backup-bridge/store.log'))[2];
    is(sprintf('%o', $mode), '100600', 'only root reads it');
}

is(waitpid(-1, POSIX::WNOHANG()), -1, 'A12: no child is left to reap');
is(host_pid($client), host_pid(client()), 'one host per process and storage');
isnt(host_pid(client('other')), host_pid($client), 'another storage has another host');

# PVE's handlers of SIGCHLD.
my $handlers = {
    loops => sub { 1 while waitpid(-1, POSIX::WNOHANG()) > 0 },
    waits => sub { wait() },
    ignores => 'IGNORE',
};
for my $name (sort keys %$handlers) {
    local $SIG{CHLD} = $handlers->{$name};
    is_deeply(
        client("chld-$name")->call('echo', { a => 1 }), { a => 1 },
        "CHLD $name does no harm"
    );
}

# Standard descriptors that are closed.
{
    open(my $in, '<&', \*STDIN) or die;
    open(my $err, '>&', \*STDERR) or die;
    close(STDIN);
    close(STDERR);
    my $result = eval { client('no-stdin')->call('process', {}) };
    open(STDERR, '>&', $err) or die;
    open(STDIN, '<&', $in) or die;
    like(
        $result->{descriptors}->{$_}, qr/^socket:/,
        "a host starts where fd 0 and 2 are closed: $_"
        )

        for 0, 3;
}

# Signals to the process group do not reach a host, and die handlers do not run in its birth.
{
    my $pid = fork() // die;
    if (!$pid) {
        setpgrp(0, 0);
        local $SIG{TERM} = sub { };
        my $host = host_pid(client('group'));
        kill('TERM', -$$);
        sleep(0.1);
        POSIX::_exit(is_alive($host) ? 0 : 1);
    }
    waitpid($pid, 0);
    is($?, 0, 'A3: a TERM for the process group leaves the host alive');
}

# Changed options.
{
    my $first = host_pid(client('changing'));
    my $same = { type => 'bridge-dir', path => '/srv/store', shared => 1 };
    is(host_pid(client('changing')), $first, 'the same options keep the host');
    my $second = host_pid(client('changing', content => { backup => 1 }, shared => 1));
    isnt($second, $first, 'other options replace it');
    ok(eventually(sub { !is_alive($first) }), 'the old one ends');
    my $scfg = client('changing', content => { backup => 1 }, shared => '1')->call('scfg', {});
    my $expected = { type => 'bridge-dir', path => '/srv/store', shared => '1' };
    is_deeply($scfg, { %$expected, content => { backup => '1' } }, 'options are sent as text');
    is(host_pid(client('changing', content => { backup => 1 }, shared => 1)), $second, '1 is "1"');

    client('changing', shared => 0)->call('job_init', {}, hold => 1);
    my $held = host_pid(client('changing', shared => 0));
    is(host_pid(client('changing', shared => 1)), $held, 'a job keeps its host whatever changes');
    client('changing', shared => 1)->call('job_cleanup', {}, hold => 0);
    isnt(host_pid(client('changing', shared => 1)), $held, 'until it ends');
}

# Text.
{
    my $wide = client('wide', path => "/srv/sn\xc3\xb6w");
    is(
        $wide->call('scfg', {})->{path}, "/srv/sn\x{f6}w",
        'B18: bytes of storage.cfg arrive as text'
    );
    my $text = "caf\x{e9} \x{2603}";
    is($wide->call('echo', { text => $text })->{text}, $text, 'B18: text survives');
    my $long = 'z' x 10_000_000;
    ok($wide->call('echo', { text => $long })->{text} eq $long, '10 MB cross in both directions');
    local $PVE::BackupBridge::Client::MAX_MESSAGE = 1_000_000;
    my $err = error_of(sub { $wide->call('echo', { text => $long }) });
    my $expected = "a message to the backup host would be longer than 1000000 bytes\n";
    is($err, $expected, 'no message is longer than the limit');
    is($wide->call('echo', { a => 2 })->{a}, 2, 'and the host is of use still');

    for my $storeid ("a\n", '../x', 'a', '-a', "\x{2603}bc", "a\0b", 'a' x 101) {
        like(
            error_of(sub { client($storeid) }), qr/^unable to parse storage ID\n\z/,
            'bad storeid'
        );
    }
}

# What is not there.
{
    local $PVE::BackupBridge::Client::NODE = '/nonexistent/node';
    my $err = error_of(sub { client('no-node')->call('echo', {}) });
    is($err, "'/nonexistent/node' is missing: reinstall pve-backup-bridge and nodejs\n", 'no node');
}
{
    local $PVE::BackupBridge::Client::NODE = '/etc/passwd';
    my $err = error_of(sub { client('no-exec')->call('echo', {}) });
    like(
        $err, qr/^the backup host of storage 'no-exec' has ended unexpectedly, see \S+\n\z/,
        'no exec'
    );
    my $log = slurp(root() . '/var/log/pve-backup-bridge/no-exec.log');
    like($log, qr!^exec /etc/passwd - !, 'the log file says why');
}
{
    local $PVE::BackupBridge::Client::ROOT = '/nonexistent';
    my $links = client('no-log')->call('process', {})->{descriptors};
    is($links->{2}, '/dev/null', 'without a log directory errors go to /dev/null');
}

# The end: end-of-file.
{
    my $pid = fork() // die;
    if (!$pid) {
        my $host = host_pid(client('eof'));
        TestHost::write_file(root() . '/eof', $host);
        POSIX::_exit(0);
    }
    waitpid($pid, 0);
    my $host = slurp(root() . '/eof');
    ok(eventually(sub { !is_alive($host) }), 'A5: a host ends with its owner, POSIX::_exit or not');
}

done_testing();
