#!/usr/bin/perl
# SPDX-License-Identifier: AGPL-3.0-or-later
# Prints the median time of a call through the shim, in milliseconds.

use v5.36;

use Time::HiRes qw(time);

use PVE::BackupBridge::Client;
use PVE::BackupBridge::Manifest;

my ($root, $node, $project) = @ARGV;
$PVE::BackupBridge::Client::ROOT = $root;
$PVE::BackupBridge::Client::NODE = $node;
$PVE::BackupBridge::Client::HOST = "$project/dist/host.mjs";
$PVE::BackupBridge::Manifest::PROVIDERS = "$project/dist/providers";

mkdir("$root/store");
my $client = PVE::BackupBridge::Client->new('bridge-dir', 'bench', { path => "$root/store" });
$client->call('ping', {}) for 1 .. 200;
my @times;
for (1 .. 2000) {
    my $start = time();
    $client->call('ping', {});
    push @times, time() - $start;
}
@times = sort { $a <=> $b } @times;
printf("%.4f\n", 1000 * $times[@times / 2]);
