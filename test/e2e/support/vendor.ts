import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const plugin = `package PVE::Storage::Custom::SamplePlugin;
use v5.36;
use base qw(PVE::BackupBridge::StoragePlugin);
sub type { return 'sample' }
1;
`;

/** What a vendor installs for storage type 'sample' beside the bridge: a provider and three lines of Perl. */
export class VendorInstall {
  readonly #directory: string;

  private constructor(directory: string) {
    this.#directory = directory;
  }

  static async create(): Promise<VendorInstall> {
    const install = new VendorInstall(await mkdtemp(join(tmpdir(), 'vendor-')));
    const plugins = join(install.libraries, 'PVE/Storage/Custom');
    await mkdir(plugins, { recursive: true });
    await writeFile(join(plugins, 'SamplePlugin.pm'), plugin);
    await cp('dist/providers', install.providers, { recursive: true });
    await cp('fixtures/providers/sample', join(install.providers, 'sample'), { recursive: true });
    return install;
  }

  get libraries(): string {
    return join(this.#directory, 'perl5');
  }

  get providers(): string {
    return join(this.#directory, 'providers');
  }

  get manifest(): string {
    return join(this.providers, 'sample/provider.json');
  }

  /** For `PveNode.create`. */
  get nodeOptions(): { libraries: readonly string[]; providers: string } {
    return { libraries: [this.libraries], providers: this.providers };
  }

  async remove(): Promise<void> {
    await rm(this.#directory, { recursive: true, force: true });
  }
}
