import { BackupError } from '../protocol/errors.ts';
import type { Handlers } from '../protocol/methods.ts';
import type { VmRestore } from '../sdk/provider.ts';
import { collectStaleExports, exportImage } from '../toolbox/image-export.ts';
import { ReleaseStack } from '../toolbox/release.ts';
import { archiveOf } from './archive.ts';
import type { Context } from './session.ts';

type RestoreMethod =
  | 'archive_get_guest_config'
  | 'archive_get_firewall_config'
  | 'restore_get_mechanism'
  | 'restore_vm_init'
  | 'restore_vm_volume_init'
  | 'restore_vm_volume_cleanup'
  | 'restore_vm_cleanup';

interface OpenRestore {
  readonly restore: VmRestore;
  /** Per device, what its export holds. */
  readonly exports: Map<string, ReleaseStack>;
}

/** The restores of VMs [C1]: each volume is served as a file for as long as PVE reads it. */
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
        const { vmtype } = (await archive(volname)).info;
        if (vmtype === 'lxc') {
          throw new BackupError(`${this.#context.title} does not restore containers`);
        }
        return { mechanism: 'qemu-img', vmtype };
      },
      restore_vm_init: ({ volname }) => this.#init(volname),
      restore_vm_volume_init: ({ volname, 'device-name': device }, signal) =>
        this.#openVolume(volname, device, signal),
      restore_vm_volume_cleanup: async ({ volname, 'device-name': device }) => {
        const { exports } = this.#restoreOf(volname);
        const stack = exports.get(device);
        exports.delete(device);
        await stack?.release();
        return {};
      },
      restore_vm_cleanup: async ({ volname }) => {
        await this.#cleanup(volname);
        return {};
      },
    };
  }

  /** Releases every restore, whatever PVE left out. */
  async close(): Promise<void> {
    for (const volname of [...this.#restores.keys()]) await this.#cleanup(volname);
  }

  async #init(volname: string) {
    const { provider, title, lifecycle, mounts, log } = this.#context;
    await this.#cleanup(volname);
    await collectStaleExports(mounts, log);
    const archive = await archiveOf(provider, volname);
    if (archive.restoreVm === undefined) throw new BackupError(`${title} does not restore VMs`);
    const restore = await archive.restoreVm();
    lifecycle.hold();
    this.#restores.set(volname, { restore, exports: new Map() });
    return Object.fromEntries([...restore.volumes].map(([device, size]) => [device, { size }]));
  }

  async #openVolume(volname: string, device: string, signal: AbortSignal) {
    const { restore, exports } = this.#restoreOf(volname);
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

  async #cleanup(volname: string): Promise<void> {
    const open = this.#restores.get(volname);
    if (open === undefined) return;
    this.#restores.delete(volname);
    const stack = new ReleaseStack();
    stack.add('restore', () => open.restore.close());
    for (const [device, volume] of open.exports) stack.add(device, () => volume.release());
    try {
      await stack.release();
    } finally {
      this.#context.lifecycle.unhold();
    }
  }

  #restoreOf(volname: string): OpenRestore {
    const open = this.#restores.get(volname);
    if (open !== undefined) return open;
    throw new BackupError(`no restore of '${volname}' has begun: restore_vm_init comes first`);
  }
}

const toBase64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64');
