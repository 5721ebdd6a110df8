#!/usr/bin/perl

# Calls of a backup provider with any arguments: stdin is JSON, {"storeid","calls":[[METHOD,ARG…]…]}, stdout
# one answer per call, {"result":[…]} or {"error"}. `new` makes another object and gives no answer.

use v5.36;

use JSON ();

BEGIN {
    require Fixture::Options;
    Fixture::Options::take(\@ARGV);
}

use PVE::Storage;

my $json = JSON->new->utf8->canonical->allow_nonref;
my $input = $json->decode(do { local $/ = undef; <STDIN> });
my $log = sub ($level, $message) { warn "$level: $message\n" };
my $cfg = PVE::Storage::config();
my $provider;
my @answers;
for my $call ($input->{calls}->@*) {
    my ($method, @args) = @$call;
    if ($method eq 'new') {
        $provider = PVE::Storage::new_backup_provider($cfg, $input->{storeid}, $log);
        next;
    }
    my @result = eval { $provider->$method(@args) };
    push @answers, $@ ? { error => "$@" } : { result => \@result };
}
print $json->encode(\@answers) . "\n";
