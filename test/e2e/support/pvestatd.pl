#!/usr/bin/perl

# What pvestatd does about storages, in one process and without forks: a poll of all of them for each
# line of stdin. Each is answered with JSON: {"seconds","info"}. An argument stands in for the client's
# $PING_TIMEOUT.

use v5.36;

use JSON ();
use Time::HiRes qw(time);

BEGIN {
    require Fixture::Options;
    Fixture::Options::take(\@ARGV);
}

use PVE::Storage;

$PVE::BackupBridge::Client::PING_TIMEOUT = $ARGV[0] if @ARGV;
STDOUT->autoflush(1);
while (defined(readline(STDIN))) {
    my $start = time();
    my $info = PVE::Storage::storage_info(PVE::Storage::config());
    print JSON->new->canonical->encode({ info => $info, seconds => time() - $start }) . "\n";
}
