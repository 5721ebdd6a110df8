import { BackupError } from '../protocol/errors.ts';
import type { Handlers } from '../protocol/methods.ts';
import type { VmRestore } from '../sdk/provider.ts';
import { exportImage } from '../toolbox/image-export.ts';
import { ReleaseStack } from '../toolbox/release.ts';
import { collectStaleRestores } from '../toolbox/stale-restores.ts';
import { archiveOf } from './archive.ts';
import { containerMechanism, openContainer } from './container-restore.ts';
import type { Context } from './session.ts';

type RestoreMethod =
  | 'archive_get_guest_config'
  | 'archive_get_firewall_config'
  | 'restore_get_mechanism'
  | 'restore_vm_init'
  | 'restore_vm_volume_init'
  | 'restore_vm_volume_cleanup'
  | 'restore_vm_cleanup'
  | 'restore_container_init'
  | 'restore_container_cleanup';

/** What a restore holds, of a VM also what each volume's export does. */
interface OpenRestore {
  readonly stack: ReleaseStack;
  readonly vm?: { readonly restore: VmRestore; readonly exports: Map<string, ReleaseStack> };
}

/** The restores [C1, C2]: each volume of a VM is served as a file for as long as PVE reads it. */
export class Restores {
  readonly #context: Context;
  readonly #restores = new Map<string, OpenRestore>();

  constructor(context: Context) {
    this.#context = context;
  }

  handlers(): Pick<Handlers, RestoreMethod> {
    const archive = (volname: string) => archiveOf(this.#context.provider, volname);
    return {
      archive_get_guest_config: async ({ volname }) => ({
        config: toBase64(await (await archive(volname)).guestConfig()),
      }),
      archive_get_firewall_config: async ({ volname }) => {
        const config = await (await archive(volname)).firewallConfig();
        // PVE would write an empty file over the old one before it has checked anything [C8].
        return { config: config === undefined ? null : toBase64(config) };
      },
      restore_get_mechanism: async ({ volname }) => {
        const opened = await archive(volname);
        const { vmtype } = opened.info;
        if (vmtype === 'qemu') return { mechanism: 'qemu-img', vmtype };
        return { mechanism: containerMechanism(this.#context.title, opened), vmtype };
      },
      restore_vm_init: ({ volname }) => this.#init(volname),
      restore_vm_volume_init: ({ volname, 'device-name': device }, signal) =>
        this.#openVolume(volname, device, signal),
      restore_vm_volume_cleanup: async ({ volname, 'device-name': device }) => {
        const { exports } = this.#vmOf(volname);
        const stack = exports.get(device);
        exports.delete(device);
        await stack?.release();
        return {};
      },
      restore_vm_cleanup: ({ volname }) => this.#cleanup(volname),
      restore_container_init: ({ volname }, signal) => this.#initContainer(volname, signal),
      restore_container_cleanup: ({ volname }) => this.#cleanup(volname),
    };
  }

  /** Releases every restore, whatever PVE left out. */
  async close(): Promise<void> {
    for (const volname of [...this.#restores.keys()]) await this.#cleanup(volname);
  }

  async #init(volname: string) {
    const { provider, title } = this.#context;
    await this.#makeReady(volname);
    const archive = await archiveOf(provider, volname);
    if (archive.restoreVm === undefined) throw new BackupError(`${title} does not restore VMs`);
    const restore = await archive.restoreVm();
    const stack = new ReleaseStack();
    stack.add('restore', () => restore.close());
    this.#keep(volname, { stack, vm: { restore, exports: new Map() } });
    return Object.fromEntries([...restore.volumes].map(([device, size]) => [device, { size }]));
  }

  /** Leaves nothing behind where it fails: PVE calls no cleanup then [C2]. */
  async #initContainer(volname: string, signal: AbortSignal) {
    await this.#makeReady(volname);
    const archive = await archiveOf(this.#context.provider, volname);
    const { path, stack } = await openContainer(this.#context, archive, signal);
    this.#keep(volname, { stack });
    return path;
  }

  async #makeReady(volname: string): Promise<void> {
    await this.#cleanup(volname);
    await collectStaleRestores(this.#context);
  }

  #keep(volname: string, open: OpenRestore): void {
    this.#context.lifecycle.hold();
    this.#restores.set(volname, open);
  }

  async #openVolume(volname: string, device: string, signal: AbortSignal) {
    const { restore, exports } = this.#vmOf(volname);
    if (exports.has(device)) throw new BackupError(`'${device}' of '${volname}' is open already`);
    const stack = new ReleaseStack();
    try {
      const image = await restore.openVolume(device);
      stack.add(`image of ${device}`, () => image.close());
      const file = await exportImage(image, {
        directory: this.#context.mounts,
        name: `${device}.raw`,
        signal,
        log: this.#context.log,
      });
      stack.add(`export of ${device}`, () => file.close());
      exports.set(device, stack);
      return { 'qemu-img-path': file.path };
    } catch (error) {
      await stack.release();
      throw error;
    }
  }

  async #cleanup(volname: string): Promise<Record<string, never>> {
    const open = this.#restores.get(volname);
    if (open === undefined) return {};
    this.#restores.delete(volname);
    for (const [device, volume] of open.vm?.exports ?? []) {
      open.stack.add(device, () => volume.release());
    }
    try {
      await open.stack.release();
    } finally {
      this.#context.lifecycle.unhold();
    }
    return {};
  }

  #vmOf(volname: string): NonNullable<OpenRestore['vm']> {
    const vm = this.#restores.get(volname)?.vm;
    if (vm !== undefined) return vm;
    throw new BackupError(`no restore of '${volname}' has begun: restore_vm_init comes first`);
  }
}

const toBase64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64');
