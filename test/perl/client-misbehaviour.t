use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use POSIX ();
use Test::More;
use Time::HiRes qw(sleep);

use TestHost qw(behave calls client error_of eventually host_pid is_alive root timed);

my $log_file = root() . '/var/log/pve-backup-bridge';
my $serial = 0;

# A client of a new storage, so that each case has a host of its own.
my sub fresh($behaviour) {
    behave($behaviour);
    return client('case' . ++$serial);
}

my sub started() {
    return scalar(grep { m/ start$/ } calls());
}

sub all_gone() {
    return !grep { is_alive($_) } map { m/^(\d+) start$/ } calls();
}

# Hosts that are no good from the start: one clear error, the host is gone, the next call starts another.
my @cases = (
    ['exit', 'has ended unexpectedly'],
    ['silent', 'has sent no hello line'],
    ['junk', "sent something else than JSON-RPC ('Segmentation  [31mfault')"],
    ['array', "sent something else than JSON-RPC ('[1,2]')"],
    ['no-hello', 'did not begin with a hello line'],
    ['endless', 'sent an endless line'],
    ['protocol', "speaks protocol '2' instead of 1: reinstall pve-backup-bridge"],
);
for my $case (@cases) {
    my ($behaviour, $what) = @$case;
    local $PVE::BackupBridge::Client::HELLO_TIMEOUT = $behaviour eq 'silent' ? 1 : 30;
    local $PVE::BackupBridge::Client::MAX_MESSAGE = 4_000_000;
    my $client = fresh($behaviour);
    my ($seconds, $err) = timed(sub { $client->call('echo', {}) });
    my $expected =
        "the backup host of storage 'case$serial' $what, see $log_file/case$serial.log\n";
    is($err, $expected, "$behaviour: one clear error");
    cmp_ok($seconds, '<', 25, "$behaviour: at once");
    ok(eventually(\&all_gone), "$behaviour: the host is gone");
    behave('');
    is($client->call('echo', { a => 1 })->{a}, 1, "$behaviour: the next call starts another");
}

# A host whose provider refuses the options.
{
    my $client = fresh('refuse-open');
    is(
        error_of(sub { $client->call('echo', {}) }), "storage.cfg lacks 'path'\n",
        'refused options'
    );
    behave('');
    is($client->call('echo', { a => 1 })->{a}, 1, 'and later not');
}

# SIGPIPE is never raised.
{
    my $pipes = 0;
    local $SIG{PIPE} = sub { $pipes++; die "interrupted by signal\n" };
    my $client = fresh('');
    my $pid = host_pid($client);
    kill('KILL', $pid);
    eventually(sub { !is_alive($pid) });
    is($client->call('echo', { a => 1 })->{a}, 1, 'A3: a host that died idle is replaced');

    $client = fresh('die');
    my $err = error_of(sub { $client->call('echo', { long => 'x' x 1_000_000 }) });
    like(
        $err, qr/^the backup host of storage '\S+' has ended unexpectedly, see /,
        'dies in mid-call'
    );
    is(started(), 1, 'a call that it has read is not repeated');
    behave('');
    is($client->call('echo', { a => 1 })->{a}, 1, 'A3: an error of one call only');

    $client = fresh('');
    $pid = host_pid($client);
    kill('STOP', $pid);
    my $killer = fork() // die;
    if (!$killer) {
        sleep(0.3);
        kill('KILL', $pid);
        POSIX::_exit(0);
    }
    is(
        $client->call('process', { long => 'x' x 3_000_000 })->{umask}, oct('77'),
        'A3: a half line'
    );
    waitpid($killer, 0);
    is($pipes, 0, 'A3: no SIGPIPE');
}

# A host that leaves after an answer, as an idle one does.
{
    my $client = fresh('leave');
    for my $i (1 .. 20) {
        is($client->call('echo', { i => $i })->{i}, $i, "call $i to a host that leaves") or last;
    }
}

# The same, between the look and the call: it closes without having read.
{
    my $client = fresh('');
    my $pid = host_pid($client);
    kill('STOP', $pid);
    my $killer = fork() // die;
    if (!$killer) {
        sleep(0.3);
        kill('KILL', $pid);
        POSIX::_exit(0);
    }
    is($client->call('echo', { a => 1 })->{a}, 1, 'a call that was not read is repeated, once');
    waitpid($killer, 0);
    is(started(), 2, 'on a new host');
}

# Answers that nobody asked for.
{
    my $client = fresh('twisted');
    is($client->call('echo', { a => 1 })->{a}, 1, 'answers are told apart by id');
    is($client->call('echo', { a => 2 })->{a}, 2, 'and late ones are dropped');
}

# Log lines.
{
    my $client = fresh('flood');
    my @log;
    $client->call('echo', {}, log => sub { push @log, [@_] });
    is(scalar(@log), 20_004, 'every line of a flood arrives');
    is_deeply([map { $_->[0] } @log[-4 .. -2]], [qw(warn err err)], 'B20: levels are PVE\'s');
    is_deeply($log[-1], ['info', "two lines \xe2\x98\x83"], 'B20: one line of bytes, none empty');
    is(error_of(sub { $client->call('echo', {}) }), undef, 'A11: silent without a log function');
}

# Requests of the host's.
{
    my $client = fresh('reverse');
    my $answer = $client->call('echo', {});
    is($answer->{error}->{code}, -32601, 'unknown requests are answered so');
    my $requests = { twice => sub { return { y => 2 * $_[0]->{x} } } };
    $answer = $client->call('echo', { ask => 'twice' }, requests => $requests);
    is_deeply($answer->{result}, { y => 2 }, 'known ones are served');
    my $err = error_of(sub {
        $client->call('echo', { ask => 'twice' }, requests => { twice => sub { die "no\n" } });
    });
    is($err, "no\n", 'what they die of ends the call');
}

# Both sides write at once.
{
    my $client = fresh('deaf');
    my $lines = 0;
    my $long = 'x' x 20_000_000;
    my $answer = $client->call('echo', { long => $long }, log => sub { $lines++ });
    ok($answer->{long} eq $long && $lines == 5000, 'a host that does not read does not block');
}

# Errors.
{
    my $client = fresh('error-junk');
    is(error_of(sub { $client->call('echo', {}) }), "one two  three\n", 'an error is one line');
    $client = fresh('');
    is(
        error_of(sub { $client->call('nonsense', {}) }), "unknown method 'nonsense'\n",
        'the host\'s'
    );
}

# A hang is seen by its pings.
{
    local $PVE::BackupBridge::Client::PING_INTERVAL = 0.2;
    local $PVE::BackupBridge::Client::PING_TIMEOUT = 0.8;
    my $client = fresh('');
    my $pid = host_pid($client);
    kill('STOP', $pid);
    my ($seconds, $err) = timed(sub { $client->call('echo', {}) });
    like($err, qr/^the backup host of storage '\S+' does not answer, see /, 'a host that hangs');
    cmp_ok($seconds, '<', 4, 'is noticed');
    ok(eventually(sub { !is_alive($pid) }), 'and killed');

    $client = fresh('slow');
    local $SIG{ALRM} = sub { die "enough\n" };
    alarm(3);
    is(error_of(sub { $client->call('echo', {}) }), "enough\n", 'one that works may take its time');
    cmp_ok(scalar(grep { m/ ping$/ } calls()), '>=', 3, 'as long as it answers pings');
    is(started(), 1, 'on the same host');
}

done_testing();
