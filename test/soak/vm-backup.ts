import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Bench, efiDisk, MiB, startBench } from '../e2e/support/bench.ts';
import { leftAfterQuiet } from '../e2e/support/leftovers.ts';
import { archivedSha256, archiveNames, strayFiles } from '../e2e/support/store-reader.ts';
import type { SoakOptions, SoakResult } from './soak.ts';
import { strikes } from './victims.ts';

const vmid = 100;
const size = 24 * MiB;
const disks = [{ device: 'drive-scsi0', size, seed: 1 }, efiDisk];
const load = { writesPerSecond: 200, targets: [{ device: 'drive-scsi0' }] };
/** KiB/s; a backup of all of the disk takes about two seconds. */
const bwlimit = 16 * 1024;
/** After so many kills one backup may finish. */
const rest = 4;
const keep = 4;

/** Kills parts of backups at random moments and looks each time whether anything came to harm. */
export async function soakVmBackup(options: SoakOptions): Promise<SoakResult> {
  const bench = await startBench({ disks, load });
  try {
    return await new Soak(bench, options).run();
  } finally {
    await bench.close();
  }
}

class Soak {
  readonly #bench: Bench;
  readonly #options: SoakOptions;
  /** Per archive and device, what it has to hold. */
  readonly #known = new Map<string, ReadonlyMap<string, string>>();
  /** How long the last undisturbed backup took. */
  #usualMs = 0;
  #harmed = 0;
  #left = 0;

  constructor(bench: Bench, options: SoakOptions) {
    this.#bench = bench;
    this.#options = options;
  }

  async run(): Promise<SoakResult> {
    const { kills } = this.#options;
    await this.#finishOne();
    for (let done = 0; done < kills; ) {
      if (!(await this.#killOne(done + 1))) continue;
      done++;
      if (done % rest === 0 || done === kills) await this.#finishOne();
    }
    return { kills, harmed: this.#harmed, left: this.#left };
  }

  /** False if the backup was over before. */
  async #killOne(number: number): Promise<boolean> {
    const { node, vm } = this.#bench;
    const at = Math.floor(this.#options.random() * size * 0.9);
    await vm.write('drive-scsi0', at - (at % 512), randomBytes(512 * 1024));
    const names = Object.keys(strikes);
    const name = names[Math.floor(this.#options.random() * names.length)] ?? '';
    const delay = Math.floor(this.#options.random() * this.#usualMs);
    await this.#nextSecond();
    const vzdump = node.vzdump([vmid], { storage: 'vault', bwlimit });
    let over = false;
    const ended = vzdump.then(({ all }) => {
      over = true;
      return all ?? '';
    });
    await Promise.race([ended, sleep(delay)]);
    let struck = false;
    while (!over && !struck) {
      struck = (await strikes[name]?.(vzdump, node.root)) ?? false;
      if (!struck) await sleep(2);
    }
    const log = await ended;
    if (struck) this.#options.say(`${number}: ${name} after ${delay} ms: ${lastLine(log)}`);
    await this.#settle(log);
    return struck;
  }

  /** A backup that nobody disturbs has to be made, and to leave nothing. */
  async #finishOne(): Promise<void> {
    const { node, store, vm } = this.#bench;
    const before = new Set(this.#known.keys());
    const backup = await this.#bench.backUp({ bwlimit });
    this.#usualMs = backup.seconds * 1000;
    await this.#settle(backup.log);
    const made = [...this.#known.keys()].filter((name) => !before.has(name));
    if (backup.exitCode !== 0 || made.length !== 1) this.#harm(`a backup failed: ${backup.log}`);
    else {
      const { exitCode, differing, log } = await this.#bench.restore(backup);
      if (exitCode !== 0 || differing.length > 0) this.#harm(`the restore failed: ${log}`);
    }
    const oldest = [...this.#known.keys()].sort().slice(0, -keep);
    for (const name of oldest) {
      const { exitCode, all } = await node.pvesm(['free', `vault:backup/${name}`]);
      if (exitCode !== 0) this.#harm(`${name} cannot be removed: ${all}`);
      this.#known.delete(name);
    }
    await this.#expectNothing([
      ...(await leftAfterQuiet(node.root, { pids: [vm.pid] })),
      ...(await strayFiles(store, [vmid])),
    ]);
    this.#options.say(`undisturbed: ${this.#known.size} archives are bit for bit what they were`);
  }

  /** Waits until all is quiet and compares what is listed with what was ever backed up. */
  async #settle(log: string): Promise<void> {
    const { node, store, vm } = this.#bench;
    await this.#expectNothing(await leftAfterQuiet(node.root, { pids: [vm.pid] }));
    const listed = await this.#list();
    for (const name of this.#known.keys()) {
      if (!listed.includes(name)) this.#harm(`${name} is gone`);
    }
    if (String(listed) !== String((await archiveNames(store, vmid)).sort())) {
      this.#harm(`listed are ${listed}, in the store are ${await archiveNames(store, vmid)}`);
    }
    for (const name of listed) {
      // New: then it is of the one backup since, whose instant the VM has kept.
      if (!this.#known.has(name)) this.#known.set(name, await this.#instant(name, log));
      for (const [device, expected] of this.#known.get(name) ?? []) {
        const got = await archivedSha256(store, name, device).catch(String);
        if (got !== expected) this.#harm(`${device} of ${name} is ${got} instead of ${expected}`);
      }
    }
  }

  async #instant(name: string, log: string): Promise<ReadonlyMap<string, string>> {
    if (!log.includes(name)) this.#harm(`${name} is listed, but was not the backup's: ${log}`);
    const sums = new Map<string, string>();
    for (const { device } of disks) sums.set(device, await this.#bench.vm.snapshotSha256(device));
    return sums;
  }

  async #list(): Promise<string[]> {
    const list = await this.#bench.node.pvesmJson<{ volid: string }[]>(['list', 'vault']);
    return list.map(({ volid }) => volid.replace('vault:backup/', '')).sort();
  }

  async #nextSecond(): Promise<void> {
    const newest = [...this.#known.keys()].sort().pop();
    if (newest === undefined) return;
    const left = Date.parse(newest.slice(-20)) + 1000 - Date.now();
    if (left > 0) await sleep(left);
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

const lastLine = (text: string) => text.trimEnd().split('\n').pop() ?? '';
