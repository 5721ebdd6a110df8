import type { ContainerBackup, ContainerBackupInput } from '../../sdk/provider.ts';
import { abortError, follow } from '../../toolbox/abort.ts';
import type { Compression } from './chunk-codec.ts';
import { codeOf } from './files.ts';
import { member } from './layout.ts';
import type { RunDirectory } from './run-directory.ts';
import { type Stored, StoredBackup } from './stored-backup.ts';
import { writeStream } from './write-stream.ts';

/** What the tar is called, and the program that compresses it on all cores. */
const forms = {
  brotli: { file: member.tarZstd, through: ['zstd', '-T0', '-q', '-c'] },
  none: { file: member.tar, through: undefined },
} as const satisfies Record<Compression, unknown>;

/** The backup of one container into the store: a tar of its tree. */
export class DirectoryContainerBackup
  extends StoredBackup<ContainerBackupInput>
  implements ContainerBackup
{
  protected async write(input: ContainerBackupInput, directory: RunDirectory): Promise<Stored> {
    const { tree, exclude, signal } = input;
    const { file, through } = forms[this.store.compression];
    // Ends tar where it is we who cannot go on.
    const stop = new AbortController();
    if (signal.aborted) throw abortError(signal);
    const unfollow = follow(stop, signal);
    try {
      const tar = await tree.tar({
        exclude,
        ...(through !== undefined && { through }),
        signal: stop.signal,
      });
      tar.done.catch(() => undefined);
      const written = await writeStream(tar.stream, directory.path(file)).catch(
        async (error: unknown) => {
          stop.abort(error);
          // Awaited, since what tar holds open keeps PVE from removing the container's snapshot.
          const reason = await tar.done.then(
            () => error,
            (why: unknown) => why,
          );
          if (signal.aborted) throw abortError(signal);
          throw codeOf(error) === 'ERR_STREAM_PREMATURE_CLOSE' ? reason : error;
        },
      );
      const { entries, bytes } = await tar.done;
      return {
        volumes: {},
        container: { tar: file, size: written.size, entries, bytes },
        files: { [file]: written.sha256 },
        storedBytes: written.size,
      };
    } finally {
      unfollow();
    }
  }
}
