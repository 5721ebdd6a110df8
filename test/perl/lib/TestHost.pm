package TestHost;

# A node for tests of the shim: a directory of providers, a root for the log files, and the misbehaving host in
# the place of the real one.

use v5.36;

use Cwd qw(abs_path);
use Exporter qw(import);
use File::Path qw(make_path);
use File::Temp qw(tempdir);
use JSON;
use POSIX ();
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(
    behave calls client error_of eventually fork_userns host_pid in_userns is_alive provider_dir
    put_manifest root scfg slurp timed use_host write_file
);

my ($base) = abs_path(__FILE__ =~ s!/?[^/]*\z!!r || '.') =~ m!^(.*)/test/perl/lib\z!;
my ($modules) = ($ENV{PVE_PERL_LIB} // "$base/fixtures/pve/lib") =~ m!^(/.*)\z!;
unshift @INC, "$base/perl", $modules;

require PVE::BackupBridge::Client;

our $VOLNAME = 'backup/100/qemu-2026-11-23T10:06:42Z';

my $manifest = <<'JSON';
{"type":"bridge-dir","title":"Directory","version":"1.0.0","archive-name":"{vmid}/{vmtype}-{time}",
 "properties":{"bridge-dir-compression":{"type":"string","enum":["brotli","none"],"description":"How"}},
 "options":{"path":{"fixed":1},"bridge-dir-compression":{"optional":1},"content":{"optional":1},
 "nodes":{"optional":1},"disable":{"optional":1}},"sensitive":[]}
JSON

my $new_root = $^C ? '/' : tempdir('bridge-XXXXXX', TMPDIR => 1, CLEANUP => 1);
my ($root) = $new_root =~ m!^(/.*)\z!;
$ENV{PATH} = '/usr/bin:/bin';
delete @ENV{qw(BASH_ENV CDPATH ENV IFS)};

sub root() { return $root }
sub provider_dir($type = 'bridge-dir') { return "$root/providers/$type" }
sub scfg(%more) { return { type => 'bridge-dir', path => '/srv/store', %more } }

sub write_file($path, $content) {
    open(my $fh, '>', $path) or die "open $path - $!\n";
    print $fh $content;
    close($fh) or die "close $path - $!\n";
}

sub slurp($path) {
    open(my $fh, '<', $path) or return '';
    local $/ = undef;
    return <$fh> // '';
}

sub put_manifest($type = 'bridge-dir', $content = $manifest) {
    make_path(provider_dir($type));
    write_file(provider_dir($type) . '/provider.json', $content);
}

# What hosts that are started from now on do wrong.
sub behave($what) {
    write_file(provider_dir() . '/behaviour', $what);
    write_file(provider_dir() . '/calls', '');
}

# What has been asked of all hosts since: 'PID METHOD'.
sub calls() { return split(/\n/, slurp(provider_dir() . '/calls')) }

sub client($storeid = 'store', %more) {
    return PVE::BackupBridge::Client->new('bridge-dir', $storeid, scfg(%more));
}

sub error_of($code) {
    return eval { $code->(); 1 } ? undef : $@;
}

# How long it took, and what it died of.
sub timed($code) {
    my $start = time();
    my $err = error_of($code);
    return (time() - $start, $err);
}

sub eventually($code, $seconds = 10) {
    for (1 .. $seconds * 50) {
        return 1 if $code->();
        sleep(0.02);
    }
    return 0;
}

sub host_pid($client) {
    my ($pid) = $client->call('process', {})->{pid} =~ m/^(\d+)\z/;
    return $pid;
}

# The program of fixtures/hosts that stands in for the host.
sub use_host($name) {
    no warnings 'once';
    $PVE::BackupBridge::Client::HOST = "$base/fixtures/hosts/$name";
}

# Forks into new user and mount namespaces, as PVE does for an unprivileged container [A8]: uid 0 in there is
# 100000 outside, gid 0 is 200000. Returns the child's pid and code that waits for it and returns what PVE's
# parent would learn: { result } or { error }, nothing if the child was killed.
sub fork_userns($code) {
    pipe(my $asked, my $ask) or die;
    pipe(my $mapped, my $map) or die;
    pipe(my $read, my $write) or die;
    my $pid = fork() // die;
    if (!$pid) {
        close($_) for $asked, $map, $read;
        my $answer = eval {
            my ($unshare, $new_user, $new_mount) = (272, 0x10000000, 0x20000);
            syscall($unshare, $new_user | $new_mount) == 0 or die "unshare - $!\n";
            syswrite($ask, "1");
            sysread($mapped, my $go, 1);
            ($(, $)) = (0, 0);
            ($<, $>) = (0, 0);
            { result => $code->() };
        } // { error => "$@" };
        print $write encode_json($answer);
        close($write);
        POSIX::_exit(0);
    }
    close($_) for $ask, $mapped, $write;
    sysread($asked, my $ready, 1);
    write_file("/proc/$pid/uid_map", "0 100000 65536\n");
    write_file("/proc/$pid/gid_map", "0 200000 65536\n");
    syswrite($map, "1");
    my $join = sub {
        local $/ = undef;
        my $answer = <$read>;
        waitpid($pid, 0);
        return length($answer) ? decode_json($answer) : {};
    };
    return ($pid, $join);
}

sub in_userns($code) {
    my (undef, $join) = fork_userns($code);
    return $join->();
}

sub is_alive($pid) {
    return slurp("/proc/$pid/stat") =~ m/^\d+ \(.*\) [^ZX] /s ? 1 : 0;
}

umask(022);
if (!$^C) { # a check of the syntax would leave them behind
    chmod(0755, $root);
    make_path("$root/var/log/pve-backup-bridge");
    put_manifest();
    behave('');
}
no warnings 'once';
$PVE::BackupBridge::Client::NODE = '/usr/bin/perl';
$PVE::BackupBridge::Client::ROOT = $root;
$PVE::BackupBridge::Manifest::PROVIDERS = "$root/providers";
use_host('misbehave.pl');

1;
