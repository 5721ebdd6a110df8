use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use JSON;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use TestHost qw(behave calls client error_of eventually host_pid is_alive);

my $serial = 0;

my sub fresh($behaviour) {
    behave($behaviour);
    return client('case' . ++$serial);
}

# Sends signals to this process: a list of seconds and names. With 'echo' first, once the host has the call.
my sub later(@signals) {
    my $parent = $$;
    my $pid = fork() // die;
    return $pid if $pid;
    if ($signals[0] eq 'echo') {
        shift @signals;
        eventually(
            sub {
                scalar(grep { m/ echo$/ } calls());
            },
            60
        );
    }
    while (my ($delay, $signal) = splice(@signals, 0, 2)) {
        sleep($delay);
        kill($signal, $parent);
    }
    POSIX::_exit(0);
}

# As vzdump does [A3].
my $signalled;
my $interrupt = sub {
    $signalled //= time();
    die "interrupted by signal\n";
};
local @SIG{qw(INT TERM QUIT HUP PIPE)} = ($interrupt) x 5;

# What a call dies of, and how many seconds after the first signal.
my sub interrupted($code) {
    $signalled = undef;
    my $err = error_of($code);
    return (time() - $signalled, $err);
}

my $client = fresh('slow');
my $pid = later('echo', 0.1, 'TERM');
my ($seconds, $err) = interrupted(sub {
    $client->call('echo', {}, log => sub { });
});
waitpid($pid, 0);
is($err, "interrupted by signal\n", 'A3: the error arrives as it was');
cmp_ok($seconds, '>', 0.4, 'A3: after the host has ended the call');
cmp_ok($seconds, '<', 4, 'A3: and not later');
is(scalar(grep { m/ cancel$/ } calls()), 1, 'A3: cancel was sent');
is($client->call('cancel', {}) && 1, 1, 'the host lives on');

$client = fresh('ignore-cancel');
$pid = later('echo', 0.1, 'TERM', 0.5, 'TERM', 0.5, 'INT', 0.5, 'HUP');
($seconds, $err) = interrupted(sub { $client->call('echo', {}) });
waitpid($pid, 0);
is($err, "interrupted by signal\n", 'A3: further signals change nothing');
cmp_ok($seconds, '>=', 4, 'A3: a host that ignores cancel is waited for');
cmp_ok($seconds, '<', 4.5, 'A3: for 4 s');
behave('answer');
ok(host_pid($client), 'A3: it is killed then: the cleanup that follows gets another host');
$pid = later(0.3, 'TERM');
is(error_of(sub { sleep(5) for 1 .. 2 }), "interrupted by signal\n", 'handlers are back after it');
waitpid($pid, 0);

# Whatever the error is.
{
    my $object = bless { code => 500 }, 'Some::Exception';
    local $SIG{ALRM} = sub { die $object };
    $client = fresh('slow');
    alarm(1);
    is(error_of(sub { $client->call('echo', {}) }), $object, 'an exception object stays one');

    $client = fresh('slow');
    my $log = sub { die "no space left on log\n" };
    $err = error_of(sub { $client->call('echo', {}, log => $log) });
    is($err, "no space left on log\n", 'what the log function dies of as well');
    local $SIG{ALRM} = sub { die "got timeout\n" };
    behave('hang');
    $client = client('case' . ++$serial);
    alarm(1);
    $err = error_of(sub { $client->call('echo', {}) });
    is($err, "got timeout\n", 'also while the host is being opened');
}

# Even where Perl's own errors are caught.
{
    $client = fresh('');
    $client->call('echo', {});
    no strict 'refs'; ## no critic (ProhibitNoStrict)
    no warnings 'redefine';
    local *{ JSON->backend() . '::decode' } = sub { die "interrupted by signal\n" };
    local $PVE::BackupBridge::Client::CANCEL_TIMEOUT = 0.5;
    $err = error_of(sub { $client->call('echo', {}) });
    is($err, "interrupted by signal\n", 'A3: a signal while a message is decoded');
}

# A signal handler that returns does not end the call.
{
    my $count = 0;
    local $SIG{USR1} = sub { $count++ };
    local $SIG{ALRM} = sub { die "enough\n" };
    $client = fresh('slow');
    $pid = later('echo', 0.1, 'USR1', 0.1, 'USR1', 0.1, 'ALRM');
    is(error_of(sub { $client->call('echo', {}) }), "enough\n", 'EINTR is no end');
    waitpid($pid, 0);
    is($count, 2, 'and the handler has run');
}

# Interrupted in the middle of a long line.
{
    $client = fresh('');
    my $host = host_pid($client);
    kill('STOP', $host);
    $pid = later(0.3, 'TERM', 0.5, 'USR1');
    local $SIG{USR1} = sub { kill('CONT', $host) };
    $err = error_of(sub { $client->call('echo', { long => 'x' x 3_000_000 }) });
    waitpid($pid, 0);
    is($err, "interrupted by signal\n", 'interrupted while it writes');
    is($client->call('echo', { a => 1 })->{a}, 1, 'the next call finds the line in order');
    is(host_pid($client), $host, 'of the same host');
}

done_testing();
