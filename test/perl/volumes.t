use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use Fcntl qw(O_CREAT O_RDWR);
use File::Temp qw(tempdir);
use IO::File;
use JSON;
use Test::More;

use TestHost qw(error_of);
use PVE::BackupBridge::Volumes;

my $size = 1024 * 1024;
my ($dir) = tempdir(CLEANUP => 1) =~ m/^(.*)\z/s;

my sub disk($name) {
    my $fh = IO::File->new("$dir/$name", O_RDWR | O_CREAT) or die "$name - $!\n";
    syswrite($fh, 'x' x $size) == $size or die "$name - $!\n";
    return $fh;
}

my $fh = disk('file');
disk('device');
my @regions = (['0', '10'], ['20', '5'], ['30', '1']); # text, as nbdinfo's lines are
my $volumes = {
    'drive-scsi0' => {
        size => "$size",
        'bitmap-mode' => 'reuse',
        'file-handle' => $fh,
        'next-dirty-region' => sub { return @regions ? (shift @regions)->@* : () },
    },
    'drive-scsi1' => {
        size => $size,
        'bitmap-mode' => 'none',
        path => "$dir/device", # RFC v3
    },
};

# What the host is told.
my $encoded = JSON->new->canonical->encode(PVE::BackupBridge::Volumes::encode($volumes));
my $number = fileno($fh);
like(
    $encoded,
    qr/"drive-scsi0":\{"bitmap-mode":"reuse","file-descriptor":$number,"size":$size\}/,
    'B7: a file is its descriptor, numbers are numbers',
);
like(
    $encoded,
    qr!"drive-scsi1":\{"bitmap-mode":"none","block-device":"$dir/device","size":$size\}!,
    'a block device is its path',
);

my $requests = PVE::BackupBridge::Volumes::requests($volumes);

# Dirty regions.
my sub next_regions($device, $max) {
    my $params = { device => $device, max => $max };
    return encode_json($requests->{volume_next_dirty_regions}->($params));
}
is(next_regions('drive-scsi0', 2), '[[0,10],[20,5]]', 'B7: no more than asked for');
is(next_regions('drive-scsi0', 2), '[[30,1]]', 'B7: what is left');
is(next_regions('drive-scsi0', 2), '[]', 'B7: and no more');
is(next_regions('drive-scsi1', 9), "[[0,$size]]", 'without a code reference all is dirty');
is(next_regions('drive-scsi1', 9), '[]', 'once');

# Fleecing space.
my sub deallocate($device, $offset, $length) {
    my $params = { device => $device, offset => $offset, length => $length };
    return $requests->{volume_deallocate}->($params);
}
for my $name (qw(file device)) {
    my $device = $name eq 'file' ? 'drive-scsi0' : 'drive-scsi1';
    my $before = (stat("$dir/$name"))[12];
    is_deeply(deallocate($device, 65536, 131072), {}, "E6: $name: a range is freed");
    is((stat("$dir/$name"))[12], $before - 256, 'E6: just that range');
    is(-s "$dir/$name", $size, 'E6: the size stays');
}

# What must not be done.
my $before = (stat("$dir/file"))[12];
for my $row (
    ['drive-scsi0', 0, $size + 1],
    ['drive-scsi0', $size, 1],
    ['drive-scsi0', 2**53 - 1, 2**53 - 1],
    ['drive-scsi0', 0, 0],
    ['drive-scsi0', -1, 10],
    ['drive-scsi0', '0 but true', 10],
    ['drive-scsi0', 0, [10]],
    ['drive-scsi2', 0, 10],
    ['../../etc', 0, 10],
    [undef, 0, 10],
) {
    my $what = join(' ', map { $_ // 'undef' } @$row);
    like(error_of(sub { deallocate(@$row) }), qr/^the backup host .*\n\z/, "refused: $what");
}
is((stat("$dir/file"))[12], $before, 'and nothing was freed');
for my $params (undef, [], {}, { device => 'drive-scsi0' }, { device => 'drive-scsi9', max => 1 }) {
    my $code = sub { $requests->{volume_next_dirty_regions}->($params) };
    like(error_of($code), qr/^the backup host .*\n\z/, 'dirty regions of nothing');
}

done_testing();
