use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use JSON;
use Test::More;

use TestHost qw(calls error_of scfg slurp);
use PVE::BackupBridge::Untaint;
use PVE::Storage::Custom::BridgeDirectoryPlugin;

# The cases that test/protocol/fixtures.test.ts checks against the schemas of the host.
my $class = 'PVE::Storage::Custom::BridgeDirectoryPlugin';
my $fixtures = JSON->new->utf8->decode(slurp("$Bin/../../fixtures/protocol/volnames.json"));
my $long = 'x' x 10_000_000;
my $checks = {
    volname => sub ($value) {
        defined((eval { $class->parse_volname($value) })[0]);
    },
    storeid => sub ($value) { defined(PVE::BackupBridge::Untaint::match('storeid', $value)) },
    'device-name' =>
        sub ($value) { defined(PVE::BackupBridge::Untaint::match('device-name', $value)) },
};
for my $kind (sort keys %$checks) {
    my $check = $checks->{$kind};
    for my $value ($fixtures->{$kind}->{accept}->@*) {
        ok($check->($value), "$kind: accepts " . PVE::BackupBridge::Untaint::printable($value));
    }
    for my $value ($fixtures->{$kind}->{reject}->@*, $long, "backup/100/qemu-$long") {
        ok(!$check->($value), "$kind: rejects " . PVE::BackupBridge::Untaint::printable($value));
    }
}

for my $value ($fixtures->{volname}->{reject}->@*, "backup/100/qemu-$long") {
    my $err = error_of(sub { $class->path(scfg(), $value, 'store') });
    like($err, qr/^unable to parse bridge volume name '[\x20-\x7e]{0,103}'\n\z/, 'one short line');
}
is_deeply([calls()], [], 'no host was asked');

done_testing();
