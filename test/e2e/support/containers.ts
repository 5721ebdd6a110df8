import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PveNode, type VzdumpOptions } from '../../../fixtures/pve/pve-node.ts';
import { type Comparison, compareTrees } from '../../../fixtures/rootfs/compare.ts';
import { describeTree, type Tree } from '../../../fixtures/rootfs/describe.ts';
import {
  formatIdMap,
  type IdMap,
  mixedIdMap,
  unprivileged,
} from '../../../fixtures/rootfs/id-map.ts';
import { makeMountPoint, makeRootfs, type RootfsOptions } from '../../../fixtures/rootfs/rootfs.ts';
import { archivesIn } from './guest.ts';

export interface ContainerSpec extends Pick<RootfsOptions, 'features' | 'files' | 'seed' | 'size'> {
  readonly vmid: number;
  /** `mixedIdMap` by default; empty for a privileged container. */
  readonly idMap?: IdMap;
  /** With the mount points mnt/data, which is backed up, and mnt/skip, which is not. */
  readonly mountPoints?: boolean;
}

export interface ContainerBackup {
  readonly exitCode: number | undefined;
  readonly log: string;
  /** In the order of the guests. */
  readonly volids: readonly string[];
}

/** What vzdump excludes by itself. */
const standardExcludes = ['/tmp/?*', '/var/tmp/?*', '/var/run/?*.pid'];

/** A node with a directory store, and containers with the tree of fixtures/rootfs. */
export class ContainerBench {
  readonly node: PveNode;
  readonly store: string;
  readonly #specs = new Map<number, ContainerSpec>();
  #lastBackup = 0;

  /** On a node that has the storage `vault` already. */
  constructor(node: PveNode) {
    this.node = node;
    this.store = join(node.root, 'store');
  }

  static async create(
    options: Readonly<Record<string, string | number>> = {},
  ): Promise<ContainerBench> {
    const bench = new ContainerBench(await PveNode.create());
    await mkdir(bench.store);
    await bench.node.addStorage('vault', 'bridge-dir', {
      content: 'backup',
      ...options,
      path: bench.store,
    });
    return bench;
  }

  async add(spec: ContainerSpec): Promise<void> {
    const { vmid, idMap = mixedIdMap, mountPoints = false, ...tree } = spec;
    this.#specs.set(vmid, spec);
    const image = (number: number) => this.node.imagePath(vmid, `vm-${vmid}-disk-${number}`);
    await mkdir(join(image(0), '..'), { recursive: true });
    await makeRootfs({ ...tree, idMap, image: image(0) });
    if (mountPoints) {
      for (const number of [1, 2]) {
        await makeMountPoint({ image: image(number), idMap, size: 32 << 20, seed: number });
      }
    }
    await this.node.addContainer(vmid, containerConfig(vmid, idMap, mountPoints));
  }

  async backUp(
    vmids: readonly number[],
    options: Partial<VzdumpOptions> = {},
  ): Promise<ContainerBackup> {
    // Two backups of a guest cannot start in one second.
    await sleep(Math.max(0, this.#lastBackup + 1000 - Date.now()));
    this.#lastBackup = Date.now();
    const { exitCode, all = '' } = await this.node.vzdump(vmids, { storage: 'vault', ...options });
    return { exitCode, log: all, volids: archivesIn(all, 'vault') };
  }

  /** The tree as the container sees it. */
  describe(vmid: number): Promise<Tree> {
    const idMap = this.#specs.get(vmid)?.idMap ?? mixedIdMap;
    return this.node.withRootfs(vmid, (directory) => describeTree(directory, idMap));
  }

  /** Restores as a new container, which gets PVE's usual id map unless its config names another. */
  async restore(
    volid: string,
    newId: number,
    options: { readonly unprivileged?: boolean } = {},
  ): Promise<{ exitCode: number | undefined; log: string }> {
    const { exitCode, all = '' } = await this.node.pctRestore(volid, newId, options);
    return { exitCode, log: all };
  }

  /** Compares what was restored as `newId` with the tree that was backed up. */
  async compare(
    vmid: number,
    newId: number,
    options: { readonly before?: Tree; readonly excludes?: readonly string[] } = {},
  ): Promise<Comparison> {
    const spec = this.#specs.get(vmid);
    const idMap = spec?.idMap ?? mixedIdMap;
    const before = options.before ?? (await this.describe(vmid));
    const restored = idMap.length === 0 ? unprivileged : idMap;
    const after = await this.node.withRootfs(newId, (path) => describeTree(path, restored));
    return compareTrees(before, after, {
      excludes: [...standardExcludes, ...(options.excludes ?? [])],
      skippedMountPoints: ['mnt/skip'],
      madeBeforehand: ['.', 'mnt', 'mnt/data', 'mnt/skip'],
    });
  }

  /** The volids that the storage lists. */
  async list(): Promise<string[]> {
    const volumes = await this.node.pvesmJson<{ volid: string }[]>(['list', 'vault']);
    return volumes.map(({ volid }) => volid);
  }

  async close(): Promise<void> {
    await this.node.destroy();
  }
}

function containerConfig(vmid: number, idMap: IdMap, mountPoints: boolean): string {
  const volume = (number: number) => `local:${vmid}/vm-${vmid}-disk-${number}.raw`;
  return [
    'arch: amd64',
    `hostname: ct${vmid}`,
    'memory: 512',
    ...(mountPoints
      ? [
          `mp0: ${volume(1)},mp=/mnt/data,backup=1,size=32M`,
          `mp1: ${volume(2)},mp=/mnt/skip,size=32M`,
        ]
      : []),
    'ostype: debian',
    `rootfs: ${volume(0)},size=256M`,
    ...(idMap.length > 0 ? ['unprivileged: 1'] : []),
    ...(idMap.length > 0 && idMap !== unprivileged
      ? formatIdMap(idMap).map((line) => `lxc.idmap: ${line}`)
      : []),
    '',
  ].join('\n');
}
