import type { BitmapRequest } from '../../protocol/model.ts';
import type { BitmapLedger, VmBackup, VmBackupInput, VolumeSizes } from '../../sdk/provider.ts';
import { type Base, findBases } from './base-archive.ts';
import { copyVolumes } from './copy-volumes.ts';
import type { RunDirectory } from './run-directory.ts';
import { type Reservation, type Stored, StoredBackup } from './stored-backup.ts';

/** The backup of one VM into the store: an index of chunks per disk. */
export class DirectoryVmBackup extends StoredBackup<VmBackupInput> implements VmBackup {
  readonly mechanism: VmBackup['mechanism'];
  #bases = new Map<string, Base>();

  constructor(reservation: Reservation, mechanism: VmBackup['mechanism']) {
    super(reservation);
    this.mechanism = mechanism;
  }

  async planBitmaps(
    volumes: VolumeSizes,
    ledger: BitmapLedger,
  ): Promise<Map<string, BitmapRequest>> {
    this.#bases = await findBases(this.store, this.guest.vmid, volumes, ledger);
    return new Map(
      [...volumes.keys()].map((device) => [device, this.#bases.has(device) ? 'use' : 'new']),
    );
  }

  protected async write(input: VmBackupInput, directory: RunDirectory): Promise<Stored> {
    try {
      const copied = await copyVolumes(input, this.#bases, this.store.chunks, directory);
      return { ...copied, files: {} };
    } finally {
      this.#bases.clear();
    }
  }
}
