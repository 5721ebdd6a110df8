use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use POSIX ();
use Test::More;

use TestHost qw(behave calls client error_of eventually host_pid is_alive root slurp write_file);

my $client = client();
my $parent_host = host_pid($client);

# Runs $code in a child and returns what it returned.
my sub in_child($code, $exit = sub { POSIX::_exit(0) }) {
    my $pid = fork() // die;
    if (!$pid) {
        write_file(root() . '/result', $code->());
        $exit->();
    }
    waitpid($pid, 0);
    return slurp(root() . '/result');
}

# [A5] In a forked worker.
my $child_host = in_child(sub { host_pid($client) });
isnt($child_host, $parent_host, 'A5: another process has a host of its own');
ok(eventually(sub { !is_alive($child_host) }), 'A5: which ends with it');
is(host_pid($client), $parent_host, 'A5: the parent keeps its own');

in_child(sub { undef $client; 1 });
is(host_pid($client), $parent_host, 'A5: a copy that is destroyed does no harm');

in_child(
    sub {
        client('store', shared => 1)->call('echo', {}); # other options
        return 1;
    },
    sub { kill('KILL', $$) },
);
is(host_pid($client), $parent_host, 'A5: nor one whose options changed, nor a kill');
is(scalar(grep { m/^$parent_host shutdown$/ } calls()), 0, 'A5: no shutdown was sent by a child');

in_child(sub { 1 }, sub { Test::More->builder->reset(); exec('/bin/true') });
is(host_pid($client), $parent_host, 'A5: nor an exec');

# [A5] The object is made in the parent, used in the child, and destroyed in the parent meanwhile.
{
    my $made = client('restore');
    pipe(my $read, my $write) or die;
    my $pid = fork() // die;
    if (!$pid) {
        close($write);
        sysread($read, my $go, 1);
        write_file(root() . '/result', $made->call('echo', { a => 7 })->{a});
        POSIX::_exit(0);
    }
    undef $made;
    close($write);
    waitpid($pid, 0);
    is(slurp(root() . '/result'), 7, 'A5: an object outlives its copy in the parent');
}

# [A6] A copy of the process that holds every descriptor does not keep the old host alive.
{
    my $changing = client('copied');
    my $host = host_pid($changing);
    my $copy = fork() // die;
    if (!$copy) {
        sleep(30);
        POSIX::_exit(0);
    }
    host_pid(client('copied', shared => 1));
    ok(eventually(sub { !is_alive($host) }), 'A6: a host that is replaced ends by shutdown');
    kill('KILL', $copy);
    waitpid($copy, 0);
}

# Ids.
is($client->call('echo', { a => 1 })->{a}, 1, 'ids of several processes do not mix');

# No zombies.
{
    my $mine = $$;
    my $zombies = sub {
        grep { m/^\d+ \(.*\) Z $mine /s } map { slurp($_) } glob('/proc/[0-9]*/stat');
    };
    client("many$_")->call('echo', {}) for 1 .. 5;
    is(scalar($zombies->()), 0, 'A12: no zombie is left');
}

done_testing();
