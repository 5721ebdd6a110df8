import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { PveProgram } from '../../fixtures/pve/pve-node.ts';
import { leftAfterQuiet } from '../e2e/support/leftovers.ts';
import { archiveNames, strayFiles } from '../e2e/support/store-reader.ts';
import {
  type SyntheticArchive,
  SyntheticGuest,
  SyntheticStore,
} from '../e2e/support/synthetic-store.ts';
import { ArchiveReader } from './archive-reader.ts';
import { removalMoments, removalStrikes } from './removal-strikes.ts';
import type { SoakOptions, SoakResult } from './soak.ts';

const device = 'drive-scsi0';
const guests = [
  { vmid: 100, seeds: [1, 2, 3] },
  // A clone: it shares chunks with the first.
  { vmid: 101, seeds: [1, 2, 4] },
];
/** Archives per guest before each removal. */
const stock = 5;
/** After so many kills a removal may finish, and one archive is restored through PVE. */
const rest = 10;

/** Kills parts of removals and prunings at random moments and looks each time whether anything came to harm. */
export async function soakRemoval(options: SoakOptions): Promise<SoakResult> {
  const store = await SyntheticStore.create();
  try {
    return await new Soak(store, options).run();
  } finally {
    await store.close();
  }
}

class Soak {
  readonly #store: SyntheticStore;
  readonly #options: SoakOptions;
  readonly #guests: readonly SyntheticGuest[];
  readonly #reader: ArchiveReader;
  /** All that may be listed: what nobody asked to remove has to be. */
  readonly #known = new Map<string, SyntheticArchive & { vmid: number }>();
  readonly #protected = new Set<string>();
  #seconds = Date.UTC(2026, 0, 1) / 1000;
  #seed = 1000;
  #harmed = 0;
  #left = 0;

  constructor(store: SyntheticStore, options: SoakOptions) {
    this.#store = store;
    this.#options = options;
    this.#reader = new ArchiveReader(store.path);
    this.#guests = guests.map(({ vmid, seeds }) => new SyntheticGuest(store, vmid, seeds));
  }

  async run(): Promise<SoakResult> {
    const { kills } = this.#options;
    for (let done = 0; done < kills; ) {
      await this.#fill();
      if (!(await this.#killOne(done + 1))) continue;
      done++;
      if (done % rest === 0 || done === kills) await this.#finishOne();
    }
    return { kills, harmed: this.#harmed, left: this.#left };
  }

  /** Makes the archives that are missing; the first two ever are protected for good. */
  async #fill(): Promise<void> {
    for (const guest of this.#guests) {
      for (let count = this.#of(guest.vmid).length; count < stock; count++) {
        guest.write(this.#pick(guest.chunks), ++this.#seed);
        this.#seconds += 1800;
        const made = await guest.backUp(new Date(this.#seconds * 1000));
        this.#known.set(made.name, { ...made, vmid: guest.vmid });
        if (this.#protected.size < guests.length && count === 0) {
          await (await this.#store.provider.archive(made.name)).setProtected(true);
          this.#protected.add(made.name);
        }
      }
    }
  }

  /** False if the removal was over before. */
  async #killOne(number: number): Promise<boolean> {
    const { program, doomed, what } = this.#startRemoval();
    const moments = Object.entries(removalMoments);
    const strikes = Object.entries(removalStrikes);
    const [momentName, moment] = moments[this.#pick(moments.length)] ?? [];
    const [strikeName, strike] = strikes[this.#pick(strikes.length)] ?? [];
    let over = false;
    const ended = program.then(({ all }) => {
      over = true;
      return all ?? '';
    });
    const { node, path } = this.#store;
    const isOver = () => over;
    await moment?.({ root: node.root, store: path, random: this.#options.random, isOver });
    let struck: number[] | undefined;
    while (!over && struck === undefined) {
      struck = await strike?.(program, node.root).catch(() => undefined);
      if (struck === undefined) await sleep(2);
    }
    const log = await ended;
    if (struck !== undefined) {
      this.#options.say(`${number}: ${what}: ${strikeName} ${momentName}: ${lastLine(log)}`);
    }
    await this.#settle(doomed, struck);
    return struck !== undefined;
  }

  /** Starts the removal of some archive or a pruning; `doomed` are those that it may remove. */
  #startRemoval(): { program: PveProgram; doomed: string[]; what: string } {
    const { node } = this.#store;
    const free = [...this.#known.keys()].filter((name) => !this.#protected.has(name));
    if (this.#options.random() < 0.5) {
      const name = free[this.#pick(free.length)] ?? '';
      const volid = `vault:backup/${name}`;
      const program =
        this.#options.random() < 0.5
          ? node.pvesm(['free', volid])
          : node.pvedaemonCall(['delete', volid]);
      return { program, doomed: [name], what: 'removal' };
    }
    const keep = 1 + this.#pick(stock - 2);
    const program = node.pvesm(['prune-backups', 'vault', '--keep-last', String(keep)]);
    const doomed = guests.flatMap(({ vmid }) =>
      this.#of(vmid)
        .filter((name) => !this.#protected.has(name))
        .slice(0, -keep),
    );
    return { program, doomed, what: 'pruning' };
  }

  /** A pruning that nobody disturbs has to leave nothing but what it keeps. */
  async #finishOne(): Promise<void> {
    const { node, path } = this.#store;
    const { exitCode, all } = await node.pvesm(['prune-backups', 'vault', '--keep-last', '2']);
    if (exitCode !== 0) this.#harm(`pruning failed: ${all}`);
    const doomed = [...this.#known.keys()].filter((name) => !this.#protected.has(name));
    await this.#settle(doomed);
    const vmids = guests.map(({ vmid }) => vmid);
    for (const vmid of vmids) {
      const count = this.#of(vmid).filter((name) => !this.#protected.has(name)).length;
      if (count !== 2) this.#harm(`pruning left ${count} archives of VM ${vmid}`);
    }
    await this.#expectNothing(await strayFiles(path, vmids));
    const names = [...this.#known.keys()];
    const archive = this.#known.get(names[this.#pick(names.length)] ?? '');
    if (String(await this.#store.list()) !== String(names.sort())) this.#harm('PVE lists others');
    const same =
      archive !== undefined && (await this.#store.restores(archive).catch((e) => String(e)));
    if (same !== true) this.#harm(`${archive?.name} is not restored: ${same}`);
    this.#options.say(`undisturbed: ${names.length} archives are bit for bit what they were`);
  }

  /** Waits until all is quiet and looks whether only doomed archives are gone, and all others are whole. */
  async #settle(doomed: readonly string[], orphans: readonly number[] = []): Promise<void> {
    const { node, path } = this.#store;
    await this.#expectNothing([
      ...(await leftAlive(orphans)),
      ...(await leftAfterQuiet(node.root)),
    ]);
    const there = (await Promise.all(guests.map(({ vmid }) => archiveNames(path, vmid)))).flat();
    const infos = await this.#store.provider.listArchives({});
    const listed = infos.map(({ name }) => name).sort();
    if (String(listed) !== String(there.sort())) {
      this.#harm(`listed are ${listed}, in the store are ${there}`);
    }
    for (const [name, { sha256 }] of this.#known) {
      if (!listed.includes(name)) {
        if (!doomed.includes(name)) this.#harm(`${name} is gone`);
        this.#known.delete(name);
        continue;
      }
      const got = await this.#reader.sha256(name, device).catch(String);
      if (got !== sha256) this.#harm(`${name} is ${got} instead of ${sha256}`);
    }
    for (const name of listed) if (!this.#known.has(name)) this.#harm(`${name} is back`);
  }

  #of(vmid: number): string[] {
    return [...this.#known.values()]
      .filter((archive) => archive.vmid === vmid)
      .map(({ name }) => name)
      .sort();
  }

  #pick(count: number): number {
    return Math.floor(this.#options.random() * count);
  }

  async #expectNothing(left: readonly string[]): Promise<void> {
    this.#left += left.length;
    for (const thing of left) this.#options.say(`LEFT: ${thing}`);
  }

  #harm(what: string): void {
    this.#harmed++;
    this.#options.say(`HARMED: ${what}`);
  }
}

/** Those of the processes that are still there after ten seconds. */
async function leftAlive(pids: readonly number[]): Promise<string[]> {
  const alive = () => pids.filter((pid) => existsSync(`/proc/${pid}`));
  for (let tries = 0; tries < 200 && alive().length > 0; tries++) await sleep(50);
  return alive().map((pid) => `process ${pid}`);
}

const lastLine = (text: string) => text.trimEnd().split('\n').pop() ?? '';
