// The raster: a pixel a neuron and token, layers one above the other, the newest token at the right.

const COLUMNS = 240, STRIP = 8; // browsers copy a whole canvas after a change: the raster is made of narrow ones
const ROWS = 16384; // a canvas of more is not drawn everywhere: neurons share pixels then
const FIRED = 0xff6ea8ff, SILENT = 0xff14100d, EDGE = 0xff4a4038; // ABGR

export class Raster {
  /** @param {HTMLElement} root @param {import("./spikes.js").Sites} sites */
  constructor(root, sites) {
    this.root = root;
    this.sites = sites;
    this.share = Math.ceil((sites.neurons + sites.sites.length) / ROWS); // neurons a pixel, lit if one of them fired
    const height = sites.sites.reduce((sum, site) => sum + Math.ceil(site.inputs / this.share) + 1, 0);
    this.column = new ImageData(1, height);
    this.pixels = new Uint32Array(this.column.data.buffer);
    root.replaceChildren(...Array.from({ length: COLUMNS / STRIP }, () => {
      const strip = document.createElement("canvas");
      strip.width = STRIP;
      strip.height = height;
      return strip;
    }));
    this.clear();
  }

  clear() {
    this.first = this.count = 0; // the token in the first column, and columns that are drawn
    for (const strip of this.root.children) blank(strip);
  }

  /** @param {Uint8Array} mask */
  add(mask) {
    let at = 0;
    for (const site of this.sites.sites) {
      for (let n = 0; n < site.inputs; n += this.share) {
        let fired = 0;
        for (let k = n, end = Math.min(n + this.share, site.inputs); k < end; k++) fired |= mask[site.byte + (k >> 3)] >> (k & 7) & 1;
        this.pixels[at++] = fired ? FIRED : SILENT;
      }
      this.pixels[at++] = EDGE;
    }
    if (this.count === COLUMNS) {
      const oldest = this.root.firstElementChild;
      blank(oldest);
      this.root.append(oldest);
      this.count -= STRIP;
      this.first += STRIP;
    }
    const strip = this.root.children[Math.floor(this.count / STRIP)];
    pen(strip).putImageData(this.column, this.count % STRIP, 0);
    this.count++;
  }
}

const pen = (canvas) => canvas.getContext("2d", { alpha: false });

function blank(canvas) {
  const context = pen(canvas);
  context.fillStyle = "#0d1014";
  context.fillRect(0, 0, canvas.width, canvas.height);
}

/**
 * A tensor as a picture: blue below zero, red above, by its largest size.
 * @param {HTMLCanvasElement} canvas @param {number[]} values @param {number[]} shape
 */
export function heatmap(canvas, values, shape) {
  const width = shape.at(-1), height = values.length / width;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { alpha: false }), image = new ImageData(width, height);
  const finite = values.filter((value) => Math.abs(value) < 1e30);
  const largest = finite.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-30);
  values.forEach((value, i) => {
    const share = Math.sqrt(Math.min(1, Math.abs(value) / largest)) * 255;
    image.data.set(value < 0 ? [13, 16 + share / 2, 20 + share * 0.92, 255] : [20 + share * 0.92, 16 + share / 2, 20, 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
}
