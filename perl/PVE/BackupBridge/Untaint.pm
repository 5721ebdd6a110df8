# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::BackupBridge::Untaint;

# The shape of every field that comes from a host: one pattern each, which also untaints [A2]. They mirror
# src/protocol/model.ts; fixtures/protocol holds both to the same cases.

use v5.36;

use Exporter qw(import);

our @EXPORT_OK = qw(field match printable);

my $component = qr/[a-zA-Z0-9+=_:-][a-zA-Z0-9.+=_:-]*/;

my $patterns = {
    'archive-name' => qr!^(?=.{1,512}\z)($component(?:/$component)*)\z!s,
    base64 => qr!^([A-Za-z0-9+/]*={0,2})\z!,
    'bitmap-request' => qr/^(new|use)\z/,
    'device-name' => qr/^([a-z][a-z0-9_-]{0,63})\z/i,
    mechanism => qr/^(nbd|file-handle|block-device|directory)\z/,
    path => qr!^(/[^\x00-\x1f\x7f]+)\z!,
    'restore-mechanism' => qr/^(qemu-img|directory|tar)\z/,
    storeid => qr/^(?=.{1,100}\z)([a-z][a-z0-9_.-]*[a-z0-9])\z/si,
    text => qr/^(.*)\z/s,
    vmid => qr/^([1-9][0-9]{0,8})\z/,
    vmtype => qr/^(qemu|lxc)\z/,
    # Integers below 2^53.
    size => qr/^(0|[1-9][0-9]{0,15})\z/,
    time => qr/^(0|[1-9][0-9]{0,15})\z/,
};

my $is_integer = { size => 1, time => 1, vmid => 1 };

# The value, untainted, or undef if it is none of this kind.
sub match($kind, $value) {
    my $pattern = $patterns->{$kind} // die "no pattern for '$kind'";
    return undef if !defined($value) || ref($value);
    my ($clean) = $value =~ $pattern;
    return $clean if !defined($clean) || !$is_integer->{$kind};
    return $clean <= 2**53 - 1 ? int($clean) : undef;
}

# The same for what a host returned under this key; dies if it does not match.
sub field($kind, $hash, $key = $kind) {
    my $value = ref($hash) eq 'HASH' ? $hash->{$key} : undef;
    my $clean = match($kind, $value);
    return $clean // die "the backup host returned no valid '$key'\n";
}

# Any text on one short line, for an error.
sub printable($value) {
    my $text = length($value) > 100 ? substr($value, 0, 100) . '...' : $value;
    $text =~ s/[^\x20-\x7e]/?/g;
    my ($clean) = $text =~ m/^(.*)\z/;
    return $clean;
}

1;
