import * as z from 'zod';
import { changeable, core, defineProvider } from '../../sdk/define.ts';
import { DirectoryProvider } from './provider.ts';

const type = 'bridge-dir';
const version = '1.0.0';

const options = {
  path: core.path,
  'bridge-dir-compression': changeable(
    z
      .enum(['brotli', 'none'])
      .default('brotli')
      .describe(
        'How new chunks of disks are compressed. Chunks that the store has stay as they are. The tar of a ' +
          'container is compressed with zstd, or not at all with none.',
      ),
  ),
  'bridge-dir-mechanism': changeable(
    z
      .enum(['nbd', 'file-handle'])
      .default('nbd')
      .describe(
        "How the disks of VMs are read: from QEMU's NBD server, or from files that PVE makes of it.",
      ),
  ),
  'bridge-dir-shared-with-cluster': changeable(
    z
      .string()
      .max(256)
      .optional()
      .describe(
        'Name of the cluster that used the path first, if both are meant to share it. No guest id may be ' +
          'used in both: pruning would mix their archives.',
      ),
  ),
};

export default defineProvider({
  type,
  title: 'Directory (pve-backup-bridge)',
  version,
  archiveName: '{vmid}/{vmtype}-{time}',
  options,
  open: (storage) => new DirectoryProvider(storage, `pve-backup-bridge ${version}`),
});
