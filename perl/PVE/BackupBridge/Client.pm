# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::BackupBridge::Client;

# Starts the host of a storage and calls it: JSON-RPC 2.0, one message per line, over a socketpair.
# A host belongs to one process and one storage. Nothing that it says is trusted.
# A second socketpair is for the children that its owner forks: one that is killed in mid-line must not get
# the owner's own calls out of step [A8, A10].

use v5.36;

use Errno qw(EAGAIN ECONNRESET EINTR);
use Fcntl qw(FD_CLOEXEC F_DUPFD F_GETFL F_SETFD F_SETFL O_NONBLOCK);
use JSON;
use List::Util qw(max min);
use POSIX ();
use Socket qw(AF_UNIX MSG_NOSIGNAL PF_UNSPEC SOCK_STREAM);
use Time::HiRes qw(CLOCK_MONOTONIC clock_gettime);

use PVE::BackupBridge::Manifest;
use PVE::BackupBridge::Secrets;
use PVE::BackupBridge::Untaint qw(match);

our $NODE = '/usr/bin/node';
our $HOST = '/usr/share/pve-backup-bridge/host.mjs';
our $ROOT = '';

our $MAX_MESSAGE = 64 * 1024 * 1024; # bytes

# Seconds.
our $HELLO_TIMEOUT = 30;
our $PING_INTERVAL = 10;
our $PING_TIMEOUT = 60;
our $CANCEL_TIMEOUT = 4; # the task's KILL comes 5 s after its TERM [A3]

use constant CHUNK => 256 * 1024;
# A signal that arrives just before select(2) must not wait for long.
use constant MAX_SELECT => 0.25;

my $json = JSON->new->utf8->canonical;
my $hosts = {}; # storeid => host
my $serial = 0;

sub now() {
    return clock_gettime(CLOCK_MONOTONIC);
}

# Text of the host's for a log: one line of bytes, without control characters.
my sub one_line($value) {
    my $text = defined($value) && !ref($value) ? substr($value, 0, 2000) : '';
    $text =~ s/[\x00-\x1f\x7f-\x9f\x{2028}\x{2029}]+/ /g;
    utf8::encode($text);
    my ($clean) = $text =~ m/^\s*(.*?)\s*\z/s;
    return $clean;
}

# Tells what a signal handler or a log function died of from an error of Perl's own.
my sub is_foreign($err) {
    return ref($err) || $err !~ m/ (?:line|chunk) \d+\.\n\z/;
}

# What a call died of, undef if it did not. A signal must reach PVE as it came [A3].
sub failure($code) {
    return undef if eval { $code->(); 1 };
    my $err = $@;
    my $signal = qr/interrupted by (?:unexpected )?signal|received interrupt/;
    die $err if ref($err) || $err =~ m/^$signal\n\z/;
    chomp($err);
    return $err;
}

# Field 22 of /proc/PID/stat, undef for one that has ended. With it a pid names one process for ever.
my sub start_time($pid) {
    open(my $fh, '<', "/proc/$pid/stat") or return;
    sysread($fh, my $stat, 4096) or return;
    my ($time) = $stat =~ m/^\d+ \(.*\) [^ZX] (?:\S+ ){18}(\d+) /s;
    return $time;
}

# This process, for the wire.
sub this_process() {
    return { pid => int($$), 'start-time' => int(start_time($$) // 0) };
}

# The rest of a child's life: becomes the host, in a session of its own, with fd 0 and 1 on the first
# socket and fd 3 on the second.
my sub become_host($sockets, $log_file, @command) {
    no warnings qw(exec io);
    delete @SIG{qw(__DIE__ __WARN__)};
    $SIG{$_} = 'DEFAULT' for grep { $SIG{$_} } keys %SIG;
    $SIG{$_} = 'IGNORE' for qw(HUP INT TERM);
    POSIX::sigprocmask(POSIX::SIG_SETMASK, POSIX::SigSet->new);
    umask(077);
    chdir('/');
    my $log;
    open($log, '>>', $log_file) or open($log, '>', '/dev/null') or die "no log - $!\n";
    # Above 2 first: PVE's own standard descriptors may be closed.
    my ($in, $second, $err) = map { fcntl($_, F_DUPFD, 10) // die "dup - $!\n" } @$sockets, $log;
    POSIX::dup2(@$_) // die "dup2 - $!\n" for [$in, 0], [$in, 1], [$err, 2], [$second, 3];
    opendir(my $dir, '/proc/self/fd') or die "cannot list descriptors - $!\n";
    POSIX::close($_) for grep { m/^\d+$/ && $_ > 3 } readdir($dir);
    %ENV = (PATH => '/usr/sbin:/usr/bin:/sbin:/bin', LANG => 'C.UTF-8');
    exec { $command[0] } @command or die "exec $command[0] - $!\n";
}

# Forks twice, so that the host is nobody's zombie: PVE's daemons reap only the children they know.
# Returns the host's pid.
my sub spawn($sockets, $log_file, @command) {
    pipe(my $read, my $write) or die "pipe - $!\n";
    my ($none, $all, $mask) = map { POSIX::SigSet->new } 1 .. 3;
    $all->fillset;
    POSIX::sigprocmask(POSIX::SIG_BLOCK, $none, $mask);
    my $child;
    # Handlers of PVE's must not run in the child, nor reap it.
    eval {
        POSIX::sigprocmask(POSIX::SIG_BLOCK, $all);
        local ($!, $?);
        $child = fork();
        if (defined($child) && $child == 0) {
            eval {
                local $SIG{__DIE__};
                POSIX::setsid();
                my $pid = fork() // POSIX::_exit(1);
                become_host($sockets, $log_file, @command) if $pid == 0;
                syswrite($write, "$pid\n");
                POSIX::_exit(0);
            };
            POSIX::write(2, $@, length($@));
            POSIX::_exit(127);
        }
        waitpid($child, 0) if $child;
    };
    my $err = $@;
    POSIX::sigprocmask(POSIX::SIG_SETMASK, $mask);
    die $err if $err;
    close($write);
    sysread($read, my $line, 32);
    my ($pid) = ($line // '') =~ m/^(\d+)\n\z/;
    return $pid // die "cannot start the backup host: fork failed\n";
}

# The host is of no use any more; whoever waits for it finds the reason.
my sub lose($host, $reason) {
    return if $host->{lost};
    $host->{lost} = $reason;
    close($host->{socket});
    delete $host->{second};
    my $current = $hosts->{ $host->{storeid} };
    delete $hosts->{ $host->{storeid} } if $current && $current == $host;
}

my sub log_file($storeid) {
    return "$ROOT/var/log/pve-backup-bridge/$storeid.log";
}

my sub complaint($storeid, $what) {
    my $log_file = log_file($storeid);
    return "the backup host of storage '$storeid' $what, see $log_file\n";
}

my sub kill_host($host, $what) {
    my ($pid, $start_time) = $host->@{qw(pid start_time)};
    kill('KILL', $pid) if $start_time && (start_time($pid) // '') eq $start_time;
    lose($host, complaint($host->{storeid}, $what));
}

my sub post($host, $message) {
    my $line = $json->encode({ jsonrpc => '2.0', %$message }) . "\n";
    die "a message to the backup host would be longer than $MAX_MESSAGE bytes\n"
        if length($line) > $MAX_MESSAGE;
    $host->{out} .= $line;
    $host->{active} = now();
}

my sub request($host, $method, $params) {
    my $id = "$$-" . ++$serial;
    post($host, { id => $id, method => $method, params => $params });
    return $id;
}

my sub error_text($error) {
    my $text = ref($error) eq 'HASH' ? one_line($error->{message}) : '';
    return ($text || 'the backup host answered with an error that says nothing') . "\n";
}

# The first line of a host.
my sub receive_hello($host, $message) {
    my $params = $message->{params};
    return kill_host($host, 'did not begin with a hello line')
        if ($message->{method} // '') ne 'hello' || ref($params) ne 'HASH';
    my $protocol = one_line($params->{protocol});
    return kill_host($host, "speaks protocol '$protocol' instead of 1: reinstall pve-backup-bridge")
        if $protocol ne '1';
    my $open = {
        storeid => $host->{storeid},
        scfg => $json->decode($host->{scfg}),
        owner => this_process(),
    };
    $host->{open} = request($host, 'open', $open);
}

my sub receive_log($host, $params) {
    my $log = $host->{log} or return; # nobody wants it [A11]
    return if ref($params) ne 'HASH';
    my $message = one_line($params->{message});
    my ($level) = one_line($params->{level}) =~ m/^(info|warn|err)\z/;
    $log->($level // 'err', $message) if $message; # PVE drops '' and '0' [B20]
}

my sub receive_request($host, $id, $method, $params) {
    my $code = $host->{requests}->{$method};
    return post($host, { id => $id, result => $code->($params) }) if $code;
    post($host, { id => $id, error => { code => -32601, message => 'unknown method' } });
}

my sub receive($host, $line) {
    my $message = eval { $json->decode($line) };
    my $err = $@;
    die $err if $err && is_foreign($err);
    my $is_message = ref($message) eq 'HASH' && ($message->{jsonrpc} // '') eq '2.0';
    my $is_first_answer = $is_message && $host->{open} && ($message->{id} // '') eq $host->{open};
    # The rest of a line, answers and log lines of an earlier child.
    return if $host->{inherited} && !$host->{opened} && !$is_first_answer;
    if (!$is_message) {
        my $start = one_line(substr($line, 0, 60));
        return kill_host($host, "sent something else than JSON-RPC ('$start')");
    }
    return receive_hello($host, $message) if !$host->{open};

    $host->{heard} = 1;
    my ($id, $method) = $message->@{qw(id method)};
    $id = undef if ref($id);
    if (defined($method)) {
        return receive_log($host, $message->{params}) if $method eq 'log';
        return receive_request($host, $id, $method, $message->{params}) if defined($id);
    } elsif (defined($id)) {
        my $error = $message->{error};
        return lose($host, error_text($error)) if $id eq $host->{open} && $error;
        $host->{opened} = 1 if $id eq $host->{open};
        delete $host->{ping} if $host->{ping} && $host->{ping}->{id} eq $id;
        # Late answers that nobody waits for any more are dropped.
        $host->{calls}->{$id} = $message if exists $host->{calls}->{$id};
    }
}

my sub send_pending($host) {
    # With plain syswrite a dead host would raise SIGPIPE, which ends vzdump's whole job [A3].
    my $sent = send($host->{socket}, $host->{out}, MSG_NOSIGNAL);
    if (defined($sent)) {
        substr($host->{out}, 0, $sent, '');
    } elsif ($! != EAGAIN && $! != EINTR) {
        $host->{unread} = 1;
        $host->{out} = '';
    }
}

my sub receive_pending($host) {
    my $count = sysread($host->{socket}, $host->{in}, CHUNK, length($host->{in}));
    if (!$count) {
        return if !defined($count) && ($! == EAGAIN || $! == EINTR);
        $host->{unread} = 1 if !defined($count) && $! == ECONNRESET;
        return lose($host, complaint($host->{storeid}, 'has ended unexpectedly'));
    }
    $host->{active} = now();
    while ((my $end = index($host->{in}, "\n", $host->{scanned})) >= 0) {
        my $line = substr($host->{in}, 0, $end + 1, '');
        $host->{scanned} = 0;
        receive($host, $line);
        return if $host->{lost};
    }
    $host->{scanned} = length($host->{in});
    kill_host($host, 'sent an endless line') if $host->{scanned} > $MAX_MESSAGE;
}

# Moves bytes in both directions, for $timeout seconds at most. Dies only of what runs meanwhile: signal
# handlers, the caller's log function.
my sub move($host, $timeout) {
    my $fd = fileno($host->{socket});
    my ($readable, $writable) = ('', '');
    vec($readable, $fd, 1) = 1;
    vec($writable, $fd, 1) = 1 if length($host->{out});
    return if select($readable, $writable, undef, $timeout) <= 0;
    send_pending($host) if vec($writable, $fd, 1);
    receive_pending($host) if vec($readable, $fd, 1);
}

my sub ping($host) {
    return if $host->{ping} || !$host->{open};
    $host->{ping} = { id => request($host, 'ping', {}), since => now() };
}

# A host that hangs is killed; one that works may take as long as it wants.
my sub watch($host) {
    my $now = now();
    if (!$host->{open}) {
        kill_host($host, 'has sent no hello line') if $now - $host->{started} > $HELLO_TIMEOUT;
    } elsif (my $ping = $host->{ping}) {
        kill_host($host, 'does not answer') if $now - $ping->{since} > $PING_TIMEOUT;
    } elsif ($now - $host->{active} >= $PING_INTERVAL) {
        ping($host);
    }
}

# Waits until $is_done, the host is lost, or $deadline.
my sub wait_for($host, $deadline, $is_done) {
    until ($host->{lost} || $is_done->()) {
        my $left = defined($deadline) ? $deadline - now() : MAX_SELECT;
        move($host, max(0, min($left, MAX_SELECT)));
        watch($host) if !$host->{lost};
        return if $left <= 0;
    }
}

# Values of storage.cfg and the like as text: what they mean is for the host to know.
sub as_text($value) {
    return { map { $_ => as_text($value->{$_}) } keys %$value } if ref($value) eq 'HASH';
    return [map { as_text($_) } @$value] if ref($value) eq 'ARRAY';
    my $text = ($value // '') . '';
    utf8::decode($text); # files are read as bytes, the API gives characters [B18]
    return $text;
}

# Two sockets, of which no program that PVE runs inherits a thing.
my sub socket_pair() {
    socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair - $!\n";
    fcntl($_, F_SETFD, FD_CLOEXEC) or die "fcntl - $!\n" for $ours, $theirs;
    my $flags = fcntl($ours, F_GETFL, 0) or die "fcntl - $!\n";
    fcntl($ours, F_SETFL, $flags | O_NONBLOCK) or die "fcntl - $!\n";
    return ($ours, $theirs);
}

my sub connection($socket, %host) {
    my $now = now();
    return {
        %host,
        socket => $socket,
        started => $now,
        active => $now,
        in => '',
        scanned => 0, # bytes of 'in' without a newline
        out => '',
        calls => {}, # id => answer, undef while there is none
        late => {}, # method => id of a call that was left running
    };
}

my sub start($type, $storeid, $scfg) {
    for my $file ($NODE, $HOST) {
        die "'$file' is missing: reinstall pve-backup-bridge and nodejs\n" if !-e $file;
    }
    my @root = $ROOT eq '' ? () : ('--root', $ROOT);
    my @command = ($NODE, $HOST, @root, PVE::BackupBridge::Manifest::directory($type));
    my $log_file = log_file($storeid);
    # The host makes its directory as well, but what keeps it from starting has to go there, too.
    my $log_directory = $log_file =~ s!/[^/]*\z!!r;
    mkdir($log_directory, 0700);
    my ($ours, $theirs) = socket_pair();
    my ($second, $their_second) = socket_pair();
    my $pid = spawn([$theirs, $their_second], $log_file, @command);
    return connection(
        $ours,
        storeid => $storeid,
        scfg => $scfg,
        secrets => PVE::BackupBridge::Secrets::state($type, $storeid),
        owner => $$,
        pid => $pid,
        start_time => start_time($pid),
        second => $second,
    );
}

# A handle on the host of a storage. Starts nothing [A4].
sub new($class, $type, $storeid, $scfg) {
    my $clean = match('storeid', $storeid) // die "unable to parse storage ID\n";
    return bless { type => $type, storeid => $clean, scfg => $scfg }, $class;
}

# Ends this process's host of a storage. In a forked child that only drops a descriptor [A5].
sub stop($storeid) {
    my $host = delete $hosts->{$storeid} or return;
    return if $host->{owner} != $$;
    request($host, 'shutdown', {}) if $host->{open};
    move($host, 0);
    lose($host, complaint($host->{storeid}, 'was stopped'));
}

# Whether it is the host, and not its store, that keeps a call with a deadline waiting.
sub is_starting($self) {
    my $host = $hosts->{ $self->{storeid} };
    return $host && !$host->{opened};
}

# The host that this process has already, if it is of use.
my sub find_host($type, $storeid, $scfg) {
    my $host = $hosts->{$storeid} or return;
    my $is_ours = $host->{owner} == $$;
    move($host, 0) if $is_ours; # it may have left for idleness
    my $is_current = $host->{held} || $host->{scfg} eq $scfg
        && $host->{secrets} eq PVE::BackupBridge::Secrets::state($type, $storeid);
    return $host if $is_ours && !$host->{lost} && $is_current;
    stop($storeid);
    return;
}

# For a child of the owner's. What an earlier child may have begun is ended and spoiled first, even if it
# lacked no more than its newline.
my sub connect_second($host) {
    my $second = connection($host->{second}, $host->%{qw(storeid pid start_time)}, inherited => 1);
    $second->{out} = "!\n";
    $second->{open} = request($second, 'ping', {});
    return $second;
}

# The host that is there already, for a call that makes sense with no other. In a namespace a child could
# neither start one nor kill it [A8].
my sub find_present($type, $storeid, $scfg) {
    my $gone = complaint($storeid, 'has ended before its work was done');
    my $host = $hosts->{$storeid} // die $gone;
    return find_host($type, $storeid, $scfg) // die $gone if $host->{owner} == $$;
    die $gone if $host->{owner} != getppid() || !defined(fileno($host->{second}));
    return connect_second($host);
}

# Asks for the end of a call and gives it some time. The error that came first has to reach the caller as
# it was, and a second signal must not take its place [A3].
my sub cancel($host, $id) {
    local @SIG{qw(HUP INT PIPE QUIT TERM)} = ('IGNORE') x 5;
    request($host, 'cancel', {});
    my $is_done = sub { $host->{calls}->{$id} };
    eval { wait_for($host, now() + $CANCEL_TIMEOUT, $is_done) };
    my $is_deaf = !$host->{lost} && !delete $host->{calls}->{$id};
    kill_host($host, 'did not end its work when it was told to') if $is_deaf;
}

# Sends a call and waits for its answer, at least until the deadline. Returns its id, undef if there was
# no time to send it.
my sub call_host($host, $method, $params, %opts) {
    my $id = delete $host->{late}->{$method};
    my $is_done = eval {
        local $host->@{qw(log requests)} = @opts{qw(log requests)};
        wait_for($host, $opts{deadline}, sub { $host->{opened} });
        if ($host->{opened} && !$host->{lost}) {
            if (!$id) {
                $host->{heard} = 0;
                $id = request($host, $method, $params);
                $host->{calls}->{$id} = undef;
            }
            wait_for($host, $opts{deadline}, sub { $host->{calls}->{$id} });
        }
        1;
    };
    return $id if $is_done;
    my $err = $@;
    cancel($host, $id) if $id && !$host->{lost};
    die $err;
}

# Calls a method of the host and returns its result, a reference. Options:
#  log       code for the host's log lines, given a level and a message; without it they are dropped
#  requests  method => code, for what the host may ask meanwhile
#  second    1 where a forked child may call on behalf of its parent; starts no host
#  hold      1 keeps this host even if storage.cfg changes, 0 ends that
#  deadline  on the clock of now(): past it the answer is undef, and the next call of this method waits for
#            the same one
sub call($self, $method, $params, %opts) {
    my ($type, $storeid) = $self->@{qw(type storeid)};
    my $scfg = $json->encode(as_text($self->{scfg}));
    my $find = $opts{second} ? \&find_present : \&find_host;
    my $found = $find->($type, $storeid, $scfg);
    my $host = $found // ($hosts->{$storeid} = start($type, $storeid, $scfg));
    my $id = call_host($host, $method, $params, %opts);
    my $is_unread = $host->{lost} && $host->{unread} && !$host->{ping} && !$host->{heard};
    if ($found && $is_unread && !$opts{second}) {
        # It left for idleness just then and has not read the call: anew, once.
        $host = $hosts->{$storeid} = start($type, $storeid, $scfg);
        $id = call_host($host, $method, $params, %opts);
    }
    $host->{held} = $opts{hold} if defined($opts{hold});
    my $answer = $id ? $host->{calls}->{$id} : undef;
    if (!$answer) {
        die $host->{lost} if $host->{lost};
        $host->{late}->{$method} = $id if $id;
        ping($host); # the next calls see whether it hangs
        move($host, 0);
        return undef;
    }
    delete $host->{calls}->{$id};
    die error_text($answer->{error}) if $answer->{error};
    return $answer->{result} // {};
}

1;
