// The raster: a pixel a neuron and token, layers one above the other, the newest token at the right.

const COLUMNS = 240;
const FIRED = 0xff6ea8ff, SILENT = 0xff14100d, EDGE = 0xff4a4038; // ABGR

export class Raster {
  /** @param {HTMLCanvasElement} canvas @param {import("./spikes.js").Sites} sites */
  constructor(canvas, sites) {
    this.sites = sites;
    canvas.width = COLUMNS;
    canvas.height = sites.neurons + sites.sites.length;
    this.context = canvas.getContext("2d", { alpha: false });
    this.column = new ImageData(1, canvas.height);
    this.pixels = new Uint32Array(this.column.data.buffer);
    this.clear();
  }

  clear() {
    this.count = 0;
    this.context.fillStyle = "#0d1014";
    this.context.fillRect(0, 0, COLUMNS, this.column.height);
  }

  /** @param {Uint8Array} mask */
  add(mask) {
    let at = 0;
    for (const site of this.sites.sites) {
      for (let n = 0; n < site.inputs; n++) this.pixels[at++] = mask[site.byte + (n >> 3)] >> (n & 7) & 1 ? FIRED : SILENT;
      this.pixels[at++] = EDGE;
    }
    if (this.count >= COLUMNS) this.context.drawImage(this.context.canvas, -1, 0);
    this.context.putImageData(this.column, Math.min(this.count, COLUMNS - 1), 0);
    this.count++;
  }
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
