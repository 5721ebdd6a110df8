# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::BackupBridge::Manifest;

# provider.json of a provider directory: what PVE has to know of a storage type without starting a host.
# Every PVE process reads it at load time, so a bad one must not die there [D1]: the type then registers
# without properties of its own, and every use says what is wrong.

use v5.36;

use Fcntl qw(:mode);
use JSON;

use PVE::BackupBridge::Untaint qw(match printable);

our $PROVIDERS = '/usr/share/pve-backup-bridge/providers';

use constant MAX_SIZE => 1024 * 1024;

# Properties of PVE's own. Defining one again breaks every storage of the node [D2].
my @core_options = qw(
    bwlimit content disable max-protected-backups nodes password path port prune-backups server shared
    username
);
my $is_core_option = { map { $_ => 1 } @core_options };

my @schema_keys = qw(
    default description enum format format_description maxLength maximum minLength minimum optional
    pattern type typetext verbose_description
);
my $is_schema_key = { map { $_ => 1 } @schema_keys };

my $manifests = {}; # directory => manifest
my $owners = {}; # property => type

sub directory($type) {
    return "$PROVIDERS/$type";
}

# What lies here is run as root: nobody else may be able to change it.
my sub check_owner($path, $is_wanted) {
    my ($mode, $uid) = (lstat($path))[2, 4];
    die "cannot read '$path' - $!\n" if !defined($mode);
    die "'$path' is no plain file or directory\n" if !$is_wanted->();
    die "'$path' does not belong to root\n" if $uid != 0;
    # In a sticky directory nobody can replace what is root's.
    die "'$path' can be written to by others than root\n"
        if $mode & (S_IWGRP | S_IWOTH) && !($mode & S_ISVTX);
}

my sub read_file($directory) {
    my $path = '';
    check_owner($path .= "/$_", sub { -d _ }) for grep { length } split('/', $directory);
    $path .= '/provider.json';
    check_owner($path, sub { -f _ && -s _ < MAX_SIZE });
    open(my $fh, '<', $path) or die "cannot open '$path' - $!\n";
    read($fh, my $content, MAX_SIZE) // die "cannot read '$path' - $!\n";
    return match('text', $content); # root's own
}

my sub check_property($type, $name, $schema) {
    die "its name does not start with '$type-'\n" if $name !~ m/^\Q$type\E-[a-z0-9-]+\z/;
    die "it is no schema\n" if ref($schema) ne 'HASH';
    my ($unknown) = grep { !$is_schema_key->{$_} } sort keys %$schema;
    die "PVE does not know '$unknown'\n" if defined($unknown);
    my ($json_type, $pattern, $enum) = $schema->@{qw(type pattern enum)};
    die "its type is none of PVE's\n"
        if ($json_type // '') !~ m/^(?:boolean|integer|number|string)\z/;
    die "its pattern is none of Perl's\n" if defined($pattern) && !eval { qr/^$pattern$/ };
    die "its enum is no list\n" if defined($enum) && ref($enum) ne 'ARRAY';
    my $owner = $owners->{$name} //= $type;
    die "storage type '$owner' has it already\n" if $owner ne $type;
}

my sub check_option($properties, $name, $traits) {
    die "it is no property of PVE's and none of its own\n"
        if !$is_core_option->{$name} && !$properties->{$name};
    die "it is neither fixed, optional nor {}\n"
        if ref($traits) ne 'HASH' || grep { !m/^(?:fixed|optional)\z/ } keys %$traits;
}

# '{vmid}/{vmtype}-{time}' as a pattern; each part stands in it once.
my sub compile_template($template) {
    my ($clean) = $template =~ m!^([a-zA-Z0-9.+=_:/{}-]+)\z!;
    die "it has characters that PVE does not allow\n" if !defined($clean);
    my $parts = {
        '{vmid}' => '(?<vmid>[1-9][0-9]{0,8})',
        '{vmtype}' => '(?<vmtype>qemu|lxc)',
        '{time}' => '(?<time>[0-9A-Za-z.:+-]+)',
    };
    my @pieces = split(m/(\{[^{}]*\})/, $clean);
    my $pattern = join('', map { delete($parts->{$_}) // quotemeta($_) } @pieces);
    my ($missing) = sort keys %$parts;
    die "it lacks $missing\n" if defined($missing);
    die "it has more than {vmid}, {vmtype} and {time}, once each\n" if $pattern =~ m/\\[{}]/;
    return qr/^$pattern\z/;
}

# Says what it was that $check died of.
my sub about($what, $check) {
    return eval { $check->() } // die "$what: $@";
}

my sub parse($type, $raw) {
    my $json = eval { JSON->new->utf8->decode($raw) };
    die "it is no JSON object\n" if ref($json) ne 'HASH';
    my $kinds = { properties => 'HASH', options => 'HASH', sensitive => 'ARRAY' };
    for my $key (qw(archive-name options properties sensitive title type version)) {
        die "'$key' is missing or wrong\n"
            if !length($json->{$key} // '') || ref($json->{$key}) ne ($kinds->{$key} // '');
    }
    die "'type' is not '$type', the name of its directory\n" if $json->{type} ne $type;
    my ($properties, $options, $sensitive) = $json->@{qw(properties options sensitive)};
    for my $name (sort keys %$properties) {
        about("property '$name'", sub { check_property($type, $name, $properties->{$name}); 1 });
    }
    for my $name (sort keys %$options) {
        about("option '$name'", sub { check_option($properties, $name, $options->{$name}); 1 });
    }
    my $needed = {};
    for my $name (@$sensitive) {
        my $traits = $options->{$name} // die "sensitive '$name' is no option\n";
        $needed->{$name} = 1 if !$traits->{optional};
        $traits->{optional} = 1; # PVE would look for it in storage.cfg
    }
    return {
        title => printable($json->{title}),
        properties => $properties,
        options => $options,
        sensitive => { map { $_ => 1 } @$sensitive },
        needed => $needed, # secrets
        archive_name =>
            about('archive-name', sub { compile_template($json->{'archive-name'}) }),
    };
}

# Never dies; a bad manifest has 'error'.
sub load($type) {
    my $directory = directory($type);
    return $manifests->{$directory} //= eval {
        die "its name is no storage type\n" if $type !~ m/^[a-z][a-z0-9-]{1,62}[a-z0-9]\z/;
        parse($type, read_file($directory));
    } // {
        error => "storage type '$type' cannot be used, see $directory/provider.json: $@",
        # PVE's own ones, so that these settings in storage.cfg are not lost.
        options => { map { $_ => { optional => 1 } } @core_options },
        properties => {},
        sensitive => {},
    };
}

# The manifest, if it is in order.
sub require_valid($type) {
    my $manifest = load($type);
    die $manifest->{error} if $manifest->{error};
    return $manifest;
}

# The guest of an archive, undef for a name that is none of this type's.
sub parse_archive_name($type, $name) {
    my $pattern = require_valid($type)->{archive_name};
    my $clean = match('archive-name', $name) // return undef;
    return undef if $clean !~ $pattern;
    return { name => $clean, vmid => int($+{vmid}), vmtype => $+{vmtype} };
}

1;
