use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use TestHost qw(
    behave calls client error_of eventually fork_userns host_pid in_userns is_alive
    provider_dir root slurp use_host write_file
);

use_host('two-connections.pl');

my $serial = 0;
my $log_directory = root() . '/var/log/pve-backup-bridge';

# A client whose host has been started by this process, and the host's pid.
my sub fresh() {
    behave('');
    my $client = client('case' . ++$serial);
    return ($client, host_pid($client));
}

my sub has_called($what) {
    return scalar(grep { m/ $what\z/ } calls());
}

my sub started() {
    return has_called('start');
}

# A child that kills itself on the first log line of $method.
my sub killed_child($client, $method, $params) {
    my $log = sub { kill('KILL', $$) };
    return in_userns(
        sub { $client->call($method, $params, log => $log, second => 1) }
    );
}

my sub second($client, $method = 'where', $params = {}, %opts) {
    return in_userns(
        sub { $client->call($method, $params, %opts, second => 1) }
    );
}

# [A8] What a child can do there.
{
    my ($client, $host) = fresh();
    my $secret = root() . '/secret';
    write_file($secret, 'x');
    chmod(0600, $secret);
    my $answer = in_userns(sub {
        return {
            ids => join(' ', $<, $>, $( + 0, $) + 0),
            map => slurp('/proc/self/uid_map') =~ s/\s+/ /gr,
            can_kill => kill('KILL', $host) + 0,
            can_read => open(my $fh, '<', $secret) ? 1 : 0,
            over => $client->call('where', {}, second => 1)->{fd},
        };
    });
    is_deeply(
        $answer->{result},
        {
            ids => '0 0 0 0', map => ' 0 100000 65536 ', can_kill => 0, can_read => 0, over => 3
        },
        'A8: a child without any rights calls over the second connection',
    );
    is(started(), 1, 'A8: of its parent\'s host');
    is($client->call('where', {})->{fd}, 0, 'A8: the parent calls over the first');
    is($client->call('where', {}, second => 1)->{fd}, 0, 'A9: in the same process always');
    is(second($client)->{result}->{fd}, 3, 'the next child of the same job');
    is_deeply(
        [map { s/^\d+ //r } calls()],
        [
            'start', '0 open', '0 process', '3 junk', '3 ping', '3 where', '0 where', '0 where',
            '3 junk', '3 ping', '3 where',
        ],
        'A8: a child says nothing over the first connection',
    );
}

# The parent's connection in the middle of something: half an answer read, a call left running.
{
    my ($client, $host) = fresh();
    my $deadline = PVE::BackupBridge::Client::now() + 0.2;
    is($client->call('work', {}, deadline => $deadline), undef, 'the parent left a call running');
    is(second($client, 'echo', { a => 1 })->{result}->{a}, 1, 'a child calls meanwhile');
    is(second($client, 'cancel')->{error}, undef, 'and cancels');
    is(error_of(sub { $client->call('work', {}) }), "cancelled\n", 'the parent gets its answer');
}

# Several calls of one child, log lines, large messages.
{
    my ($client) = fresh();
    my $answer = in_userns(sub {
        my @log;
        my @opts = (second => 1, log => sub { push @log, "@_" });
        my $long = 'z' x 10_000_000;
        my $is_same = $client->call('echo', { long => $long }, @opts)->{long} eq $long;
        my $length =
            length($client->call('chatter', { lines => 3, length => 9 }, @opts)->{long});
        $client->call('echo', {}, @opts);
        return [$is_same ? 1 : 0, $length, @log];
    });
    is_deeply(
        $answer->{result},
        [1, 9, map { "info line $_" } 1 .. 3],
        '10 MB cross in both directions; log lines go to the child'
    );
    my $err = in_userns(sub {
        local $PVE::BackupBridge::Client::MAX_MESSAGE = 1000;
        $client->call('echo', { long => 'x' x 1000 }, second => 1);
    })->{error};
    is($err, "a message to the backup host would be longer than 1000 bytes\n", 'the same limit');
}

# [A10] A child that is killed in mid-line.
{
    my ($client, $host) = fresh();
    $client->call('deafen', {});
    my ($pid, $join) = fork_userns(
        sub { $client->call('echo', { long => 'x' x 5_000_000 }, second => 1) }
    );
    ok(eventually(sub { has_called('3 ping') }), 'a child has begun');
    sleep(0.5); # until it has filled the socket
    kill('KILL', $pid);
    is_deeply($join->(), {}, 'and was killed in the middle of its request');
    $client->call('hear', {});
    is($client->call('echo', { a => 2 })->{a}, 2, 'A10: the parent\'s connection is in order');
    is(second($client, 'echo', { a => 3 })->{result}->{a}, 3, 'A10: so is the next child\'s');
    is(has_called('3 echo'), 1, 'A10: half a request is none');
    is(has_called('3 junk'), 2, 'A10: the half line was there');
    is(host_pid($client), $host, 'A10: it is the same host');
}

# [A10] The same, when no more than the newline was missing.
{
    my $sockets = sub {
        grep { (readlink("/proc/self/fd/$_") // '') =~ m/^socket:/ } 0 .. 60;
    };
    my $is_old = { map { $_ => 1 } $sockets->() };
    my ($client, $host) = fresh();
    my (undef, $fd) = grep { !$is_old->{$_} } $sockets->();
    my $request = '{"jsonrpc":"2.0","id":"dead-1","method":"leave","params":{}}';
    in_userns(sub { POSIX::write($fd, $request, length($request)); kill('KILL', $$) });
    is(second($client, 'echo', { a => 8 })->{result}->{a}, 8, 'A10: a whole line without its end');
    is(has_called('3 leave'), 0, 'A10: is not carried out on behalf of the dead');
    is(has_called('3 junk'), 1, 'A10: it was there');
}

# [A10] What a killed child has not read.
{
    my ($client, $host) = fresh();
    my @log;
    for my $length (1_000_000, 3_000_000) {
        is_deeply(
            killed_child($client, 'chatter', { lines => 4, length => $length, late => 4 }), {},
            'a child is killed before its answer'
        );
        is_deeply(
            $client->call('echo', { a => 4 }), { a => 4 },
            'A10: the parent is not disturbed'
        );
        my $answer = in_userns(sub {
            my @lines;
            my $log = sub { push @lines, $_[1] };
            my $result =
                $client->call('chatter', { lines => 1, length => 5 }, log => $log, second => 1);
            return [$result->{long}, @lines];
        });
        is_deeply(
            $answer->{result}, ['xxxxx', 'line 1'],
            'A10: the next child sees nothing of it'
        );
    }
    # An answer that comes only later.
    is_deeply(killed_child($client, 'work', {}), {}, 'a child is killed during its work');
    $client->call('cancel', {});
    is(second($client, 'echo', { a => 5 })->{result}->{a}, 5, 'A10: its answer is dropped');
    is(started(), 1, 'A10: all by the same host');
}

# [A3] A signal.
my $interrupt = sub { die "interrupted by signal\n" };
{
    my ($client, $host) = fresh();
    my ($pid, $join) = fork_userns(sub {
        local $SIG{TERM} = $interrupt;
        $client->call('work', {}, second => 1);
    });
    ok(eventually(sub { has_called('3 work') }), 'a child works');
    my $start = time();
    kill('TERM', $pid);
    kill('TERM', $pid) if eventually(sub { has_called('3 cancel') }); # its parent forwards it
    is($join->()->{error}, "interrupted by signal\n", 'A3: the error arrives as it was');
    cmp_ok(time() - $start, '<', 4, 'A3: in time');
    is(has_called('3 cancel'), 1, 'A3: cancel went over the second connection');
    is(has_called('0 cancel'), 0, 'A3: and not over the first');
    is(host_pid($client), $host, 'A3: the host lives on');

    $client->call('deafen', {});
    ($pid, $join) = fork_userns(sub {
        local $SIG{TERM} = $interrupt;
        local $PVE::BackupBridge::Client::CANCEL_TIMEOUT = 1;
        $client->call('echo', { a => 1 }, second => 1);
    });
    eventually(sub { has_called('3 ping') == 2 });
    sleep(0.2); # until it has sent its request
    $start = time();
    kill('TERM', $pid);
    is($join->()->{error}, "interrupted by signal\n", 'A3: also where cancel is not heard');
    cmp_ok(time() - $start, '>=', 0.9, 'A3: it was waited for');
    is($client->call('hear', {}) && host_pid($client), $host, 'A8: the child cannot kill the host');
    is(second($client, 'echo', { a => 6 })->{result}->{a}, 6, 'the next child calls it');
}

# A host that hangs.
{
    my ($client, $host) = fresh();
    kill('STOP', $host);
    my $answer = in_userns(sub {
        local $PVE::BackupBridge::Client::PING_INTERVAL = 0.2;
        local $PVE::BackupBridge::Client::PING_TIMEOUT = 0.8;
        $client->call('echo', {}, second => 1);
    });
    kill('CONT', $host);
    is(
        $answer->{error},
        "the backup host of storage 'case$serial' does not answer, see"
            . " $log_directory/case$serial.log\n",
        'a hang is seen by its pings',
    );
    is(second($client, 'echo', { a => 7 })->{result}->{a}, 7, 'until it goes on');
}

# A host that is gone is not replaced: what it had prepared is gone with it.
{
    my ($client, $host) = fresh();
    my $ended = sub ($what) {
        return "the backup host of storage 'case$serial' $what, see"
            . " $log_directory/case$serial.log\n";
    };
    chmod(0666, provider_dir() . '/calls'); # where a child's host could tell of its start
    my $err = second($client, 'leave')->{error};
    is($err, $ended->('has ended unexpectedly'), 'a host that ends in mid-call');
    $err = second($client)->{error};
    is($err, $ended->('has ended unexpectedly'), 'one that has ended, as the parent cannot know');
    my $twice = in_userns(sub { [
        map {
            error_of(sub { $client->call('where', {}, second => 1) })
        } 1 .. 2
    ] });
    my @expected =
        map { $ended->($_) } 'has ended unexpectedly', 'has ended before its work was done';
    is_deeply($twice->{result}, \@expected, 'nor does a child try to start one');
    is(
        error_of(sub { $client->call('where', {}, second => 1) }), $expected[1],
        'A9: nor the parent'
    );
    is(second($client)->{error}, $expected[1], 'one that the parent has lost');
    is(started(), 1, 'no other host was started');

    is($client->call('where', {})->{fd}, 0, 'the next call of the parent starts one');
    is(second($client)->{result}->{fd}, 3, 'that its children can call');
    is(started(), 2, 'the same');

    behave('');
    my $other = client('case' . ++$serial);
    is(second($other)->{error}, $ended->('has ended before its work was done'), 'never started');
    is(started(), 0, 'and still not');
}

# Grandchildren have no business there: their parent has started nothing.
{
    my ($client) = fresh();
    my $answer = in_userns(sub {
        my $pid = fork() // die;
        if (!$pid) {
            my $err = error_of(sub { $client->call('where', {}, second => 1) });
            POSIX::_exit($err =~ m/has ended before its work was done/ ? 7 : 0);
        }
        waitpid($pid, 0);
        return { code => $? >> 8 };
    });
    is($answer->{result}->{code}, 7, 'only the children of the owner use the second connection');
}

# Nothing is inherited by programs, not even where descriptors below 3 were free.
{
    my $list = q[print map { readlink("/proc/self/fd/$_") . "\n" } 0 .. 60];
    my $sockets = sub {
        grep { m/^socket:/ } map { readlink("/proc/self/fd/$_") // () } 0 .. 60;
    };
    my $is_old = { map { $_ => 1 } $sockets->() };
    behave('');
    open(my $in, '<&', \*STDIN) or die;
    close(STDIN);
    my $client = client('case' . ++$serial);
    $client->call('where', {});
    my @new = grep { !$is_old->{$_} } $sockets->();
    my $lowest = readlink('/proc/self/fd/0') // '';
    my $pid = open(my $out, '-|', '/usr/bin/perl', '-e', $list) or die;
    my $is_inherited = { map { chomp; $_ => 1 } <$out> };
    open(STDIN, '<&', $in) or die;
    is(scalar(@new), 2, 'a host takes two sockets');
    ok((grep { $_ eq $lowest } @new), 'one of them where standard input was');
    is_deeply([grep { $is_inherited->{$_} } @new], [], 'A5: a program inherits none');
}

done_testing();
