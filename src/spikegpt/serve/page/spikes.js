// Who fired: masks of a token's neurons, site after site, each site from a new byte on.

/** Sites with the first byte and the first neuron of each. */
export class Sites {
  /** @param {[string, number][]} list @param {number[]} outputs */
  constructor(list, outputs) {
    let byte = 0, neuron = 0;
    this.sites = list.map(([name, inputs], i) => {
      const site = { name, inputs, outputs: outputs[i], byte, neuron };
      byte += Math.ceil(inputs / 8);
      neuron += inputs;
      return site;
    });
    this.bytes = byte;
    this.neurons = neuron;
    this.products = this.sites.reduce((sum, site) => sum + site.inputs * site.outputs, 0);
  }
}

const BITS = Uint8Array.from({ length: 256 }, (_, n) => n.toString(2).replaceAll("0", "").length);

/** What was counted over all tokens that were read. */
export class Counts {
  /** @param {Sites} sites */
  constructor(sites) {
    this.sites = sites;
    this.tokens = 0;
    this.active = new Float64Array(sites.sites.length);
    this.ever = new Uint8Array(sites.bytes);
  }

  /** @param {Uint8Array} mask */
  add(mask) {
    this.tokens++;
    this.sites.sites.forEach((site, i) => {
      let active = 0;
      for (let b = site.byte, end = b + Math.ceil(site.inputs / 8); b < end; b++) {
        active += BITS[mask[b]];
        this.ever[b] |= mask[b];
      }
      this.active[i] += active;
    });
  }

  /** @param {number} i a site */
  alive(i) {
    const site = this.sites.sites[i];
    let alive = 0;
    for (let b = site.byte, end = b + Math.ceil(site.inputs / 8); b < end; b++) alive += BITS[this.ever[b]];
    return alive;
  }

  get rate() {
    return this.active.reduce((sum, n) => sum + n, 0) / (this.tokens * this.sites.neurons);
  }

  /** Products done: events times the outputs of their site. */
  get done() {
    return this.sites.sites.reduce((sum, site, i) => sum + this.active[i] * site.outputs, 0);
  }

  get activity() {
    return this.done / (this.tokens * this.sites.products);
  }

  get dead() {
    return this.sites.sites.reduce((sum, site, i) => sum + site.inputs - this.alive(i), 0);
  }
}

/**
 * The neurons of one site that fired.
 * @param {Uint8Array} mask @param {{byte: number, inputs: number}} site
 */
export function firedIn(mask, site) {
  const fired = [];
  for (let n = 0; n < site.inputs; n++) if (mask[site.byte + (n >> 3)] >> (n & 7) & 1) fired.push(n);
  return fired;
}
