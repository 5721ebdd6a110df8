use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use POSIX ();
use Test::More;
use Time::HiRes qw(sleep);

use TestHost qw(behave calls client error_of eventually host_pid is_alive timed);

my $serial = 0;

my sub fresh($behaviour) {
    behave($behaviour);
    return client('case' . ++$serial);
}

# Sends signals to this process: a list of seconds and names.
my sub later(@signals) {
    my $parent = $$;
    my $pid = fork() // die;
    return $pid if $pid;
    while (my ($delay, $signal) = splice(@signals, 0, 2)) {
        sleep($delay);
        kill($signal, $parent);
    }
    POSIX::_exit(0);
}

# As vzdump does [A3].
local @SIG{qw(INT TERM QUIT HUP PIPE)} = (sub { die "interrupted by signal\n" }) x 5;

my $client = fresh('slow');
my $pid = later(0.3, 'TERM');
my ($seconds, $err) = timed(sub {
    $client->call('echo', {}, log => sub { });
});
waitpid($pid, 0);
is($err, "interrupted by signal\n", 'A3: the error arrives as it was');
cmp_ok($seconds, '>', 0.7, 'A3: after the host has ended the call');
cmp_ok($seconds, '<', 4, 'A3: and not later');
is(scalar(grep { m/ cancel$/ } calls()), 1, 'A3: cancel was sent');
is($client->call('cancel', {}) && 1, 1, 'the host lives on');

$client = fresh('ignore-cancel');
$pid = later(0.3, 'TERM', 0.5, 'TERM', 0.5, 'INT', 0.5, 'HUP');
($seconds, $err) = timed(sub { $client->call('echo', {}) });
waitpid($pid, 0);
is($err, "interrupted by signal\n", 'A3: further signals change nothing');
cmp_ok($seconds, '>', 4, 'A3: a host that ignores cancel is waited for');
cmp_ok($seconds, '<', 4.8, 'A3: for 4 s');
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

# A signal handler that returns does not end the call.
{
    my $count = 0;
    local $SIG{USR1} = sub { $count++ };
    $client = fresh('');
    host_pid($client);
    $pid = later(0.1, 'USR1', 0.1, 'USR1');
    my $late = sub { sleep(0.5); return {} };
    behave('reverse');
    my $answer =
        client('case' . ++$serial)->call('echo', { ask => 'wait' }, requests => { wait => $late });
    waitpid($pid, 0);
    is_deeply($answer->{result}, {}, 'EINTR is no end');
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
