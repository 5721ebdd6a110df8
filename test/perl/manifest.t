use v5.36;

use FindBin qw($Bin);
use lib map { m!^(.*)\z!s } "$Bin/lib";

use File::Path qw(make_path);
use JSON;
use Scalar::Util qw(tainted);
use Test::More;

use TestHost qw(calls error_of provider_dir put_manifest root scfg write_file);
use PVE::BackupBridge::Manifest;
use PVE::BackupBridge::StoragePlugin;

my $serial = 0;

my sub manifest_of($type) {
    return {
        type => $type,
        title => 'ACME Vault',
        version => '1.0.0',
        'archive-name' => '{vmid}/{vmtype}-{time}',
        properties => { "$type-url" => { type => 'string', description => 'Where' } },
        options => { "$type-url" => { fixed => 1 }, path => {}, password => { optional => 1 } },
        sensitive => ['password'],
    };
}

# A new type, with a manifest that was changed by $change.
my sub make_type($change = sub { }) {
    my $type = 'acme' . ++$serial;
    my $manifest = manifest_of($type);
    $change->($manifest, $type);
    put_manifest($type, JSON->new->encode($manifest));
    return $type;
}

my sub problem($type) {
    my $error = PVE::BackupBridge::Manifest::load($type)->{error} // return undef;
    my $start = "storage type '$type' cannot be used, see " . provider_dir($type);
    my ($what) = $error =~ m!^\Q$start\E/provider\.json: (.*)\n\z!;
    return $what // "unexpected: $error";
}

# A good one.
my $type = make_type();
my $manifest = PVE::BackupBridge::Manifest::load($type);
is(problem($type), undef, 'a good manifest');
is($manifest->{title}, 'ACME Vault', 'title');
is_deeply($manifest->{sensitive}, { password => 1 }, 'sensitive options');
is_deeply($manifest->{options}->{path}, {}, 'options');
ok(!tainted($manifest->{title}), 'A2: untainted');

# Names, by template.
my $templates = {
    '{vmid}/{vmtype}-{time}' => '100/qemu-2026-11-23T10:06:42Z',
    'pve-{vmtype}-{vmid}-{time}' => 'pve-qemu-100-2026-11-23T10:06:42Z',
    'a.b+c/{time}/{vmtype}={vmid}' => 'a.b+c/2026-11-23T10:06:42Z/qemu=100',
};
for my $template (sort keys %$templates) {
    my $name = $templates->{$template};
    my $one = make_type(sub ($json, $) { $json->{'archive-name'} = $template });
    my $archive = PVE::BackupBridge::Manifest::parse_archive_name($one, $name);
    is_deeply($archive, { name => $name, vmid => 100, vmtype => 'qemu' }, "template $template");
    for my $other (grep { $_ ne $template } sort keys %$templates) {
        my $foreign = $templates->{$other};
        is(PVE::BackupBridge::Manifest::parse_archive_name($one, $foreign), undef, 'not others');
    }
}
my $dots = make_type(sub ($json, $) { $json->{'archive-name'} = '{vmid}/{vmtype}/{time}' });
for my $name ('100/qemu/..', '100/qemu/.', '100/qemu/.x', 'x100/qemu/1', '100/qemu/1x/2') {
    is(PVE::BackupBridge::Manifest::parse_archive_name($dots, $name), undef, "no name: $name");
}

# Bad ones [D1, D2].
my @bad = (
    ["'type' is not", sub ($json, $) { $json->{type} = 'other' }],
    ["'type' is missing or wrong", sub ($json, $) { delete $json->{type} }],
    ["'title' is missing or wrong", sub ($json, $) { $json->{title} = {} }],
    ["'options' is missing or wrong", sub ($json, $) { $json->{options} = [] }],
    ["'sensitive' is missing or wrong", sub ($json, $) { $json->{sensitive} = {} }],
    [
        "property 'path': its name does not start with",
        sub ($json, $) { $json->{properties}->{path} = { type => 'string' } },
    ],
    [
        "property 'url': its name does not start with",
        sub ($json, $) { $json->{properties}->{url} = { type => 'string' } },
    ],
    [
        "property '\\S+-url': PVE does not know 'oneOf'",
        sub ($json, $own) { $json->{properties}->{"$own-url"}->{oneOf} = [] },
    ],
    [
        "property '\\S+-url': its type is none of PVE's",
        sub ($json, $own) { $json->{properties}->{"$own-url"}->{type} = 'object' },
    ],
    [
        "property '\\S+-url': its pattern is none of Perl's",
        sub ($json, $own) { $json->{properties}->{"$own-url"}->{pattern} = '(' },
    ],
    [
        "property '\\S+-url': it is no schema",
        sub ($json, $own) { $json->{properties}->{"$own-url"} = 'string' },
    ],
    [
        "option 'datastore': it is no property of PVE's",
        sub ($json, $) { $json->{options}->{datastore} = {} },
    ],
    [
        "option 'path': it is neither fixed",
        sub ($json, $) { $json->{options}->{path} = { required => 1 } },
    ],
    ["sensitive 'key' is no option", sub ($json, $) { $json->{sensitive} = ['key'] }],
    [
        'archive-name: it lacks \{time\}',
        sub ($json, $) { $json->{'archive-name'} = '{vmid}{vmtype}' }
    ],
    [
        'archive-name: it has more than',
        sub ($json, $) { $json->{'archive-name'} = '{vmid}{vmtype}{time}{vmid}' },
    ],
    [
        'archive-name: it has characters',
        sub ($json, $) { $json->{'archive-name'} = '{vmid}{vmtype}{time} ' },
    ],
);
for my $case (@bad) {
    my ($expected, $change) = @$case;
    like(problem(make_type($change)), qr/^$expected/, "refused: $expected");
}
my $shared = make_type();
my $longer = "$shared-x";
put_manifest($longer, JSON->new->encode(manifest_of($longer)));
is(problem($longer), undef, 'a type that starts with another\'s name');

for my $content ('', 'no JSON', '[]', "\xff{}", '{"type":') {
    my $one = 'junk' . ++$serial;
    put_manifest($one, $content);
    like(problem($one), qr/^it is no JSON object\z/, 'no JSON');
}
like(problem('missing'), qr/^cannot read '\S+' - No such file or directory\z/, 'not there');
like(problem('../providers/acme1'), qr/^its name is no storage type\z/, 'no path');

# Owners and modes.
my sub with_type($change) {
    my $one = make_type();
    $change->(provider_dir($one));
    return problem($one);
}
like(
    with_type(sub ($dir) {
        chown(1000, 0, $dir);
    }),
    qr/^'\S+' does not belong to root\z/, 'another\'s directory',
);
like(
    with_type(sub ($dir) {
        chown(1000, 0, "$dir/provider.json");
    }),
    qr/^'\S+provider\.json' does not belong to root\z/, 'another\'s file',
);
like(
    with_type(sub ($dir) {
        chmod(oct('775'), $dir);
    }),
    qr/^'\S+' can be written to by others than root\z/, 'the group can write',
);
like(
    with_type(sub ($dir) {
        chmod(oct('666'), "$dir/provider.json");
    }),
    qr/^'\S+' can be written to by others than root\z/, 'all can write',
);
like(
    with_type(sub ($dir) {
        rename("$dir/provider.json", "$dir/real");
        symlink("$dir/real", "$dir/provider.json");
    }),
    qr/^'\S+' is no plain file or directory\z/, 'a symbolic link',
);
like(
    with_type(sub ($dir) {
        write_file("$dir/provider.json", ' ' x 2_000_000);
    }),
    qr/^'\S+' is no plain file or directory\z/, 'a huge file',
);
{
    make_path(root() . '/open/providers/acme');
    chmod(oct('777'), root() . '/open');
    local $PVE::BackupBridge::Manifest::PROVIDERS = root() . '/open/providers';
    put_manifest('acme', '{}');
    make_path(root() . '/open/providers/acme');
    write_file(root() . '/open/providers/acme/provider.json', '{}');
    like(problem_in('acme'), qr!/open' can be written to!, 'a directory above is open to all');
}

sub problem_in($one) {
    return PVE::BackupBridge::Manifest::load($one)->{error};
}

# [D1] What a bad one means for PVE.
{
    my $broken = make_type(sub ($json, $) { $json->{properties}->{path} = { type => 'string' } });
    @Broken::ISA = ('PVE::BackupBridge::StoragePlugin');
    no warnings 'once';
    *Broken::type = sub { return $broken };
    is_deeply(Broken->properties(), {}, 'D1: no property is registered');
    is_deeply(Broken->options()->{path}, { optional => 1 }, 'D1: settings of PVE\'s are kept');
    is_deeply(Broken->plugindata()->{'sensitive-properties'}, {}, 'D1: plugindata lives');
    my @store = ('store', scfg());
    my $volname = $TestHost::VOLNAME;

    for my $use (
        [check_connection => @store],
        [activate_storage => @store],
        [status => @store],
        [parse_volname => $volname],
        [list_volumes => @store, undef, ['backup']],
        [new_backup_provider => scfg(), 'store', sub { }],
        )
    {
        my ($method, @args) = @$use;
        like(
            error_of(sub { Broken->$method(@args) }),
            qr/^storage type '$broken' cannot be used, see .*: property 'path': its name/,
            "D1: $method says what is wrong",
        );
    }
}
is_deeply([calls()], [], 'D1: no host was started');

done_testing();
