use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use Scalar::Util qw(tainted);
use Test::More;

use TestHost qw(error_of scfg);
use PVE::Storage::Custom::BridgeDirectoryPlugin;

# What the storage plugin makes of entries that only some providers have.

my $class = 'PVE::Storage::Custom::BridgeDirectoryPlugin';
my $taint = substr("$0$^X", 0, 0); # tainted under -T
my $upid = "UPID:pve1:0000ABCD:0001E240:69242A00:verify:store:root\@pam:";

# The one entry that the list has, with these keys more.
my sub listed($apiver, %more) {
    no warnings qw(once redefine);
    local *PVE::Storage::APIVER = sub { $apiver };
    local *PVE::BackupBridge::Client::call = sub {
        return [{
            volname => 'backup/100/qemu-2026-11-23T10:06:42Z',
            size => 4096,
            ctime => 1795428402,
            protected => 0,
            %more,
        }];
    };
    return $class->list_volumes('store', scfg(), undef, ['backup'])->[0];
}

my $plain = listed(15);
ok(!exists($plain->{$_}), "no $_") for qw(verification encrypted notes approximate-size);

my $verified = listed(15, verification => { state => "ok$taint", upid => "$upid$taint", x => 1 });
is_deeply($verified->{verification}, { state => 'ok', upid => $upid }, 'verification');
ok(!grep({ tainted($_) } values $verified->{verification}->%*), 'A2: it is untainted');
like(
    error_of(sub { listed(15, verification => $_) }),
    qr/^the backup host returned no valid 'state'$/,
    'another shape is an error',
) for 'ok', [], { upid => $upid };

is(listed(15, encrypted => "ab:cd$taint")->{encrypted}, 'ab:cd', 'encrypted, by its key');
is(listed(11, encrypted => '')->{encrypted}, undef, 'an empty text is none');

# Version 15 has a key for sizes that are a guess; before, there is only the one that all have.
my %guess = ('approximate-size' => 1);
is_deeply([listed(15, %guess)->@{qw(size approximate-size)}], [undef, 4096], 'a guess');
is_deeply([listed(14, %guess)->@{qw(size approximate-size)}], [4096, undef], 'on an older node');

done_testing();
