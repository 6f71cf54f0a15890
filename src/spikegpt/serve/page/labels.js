// The label of a text as it forms, where the model is a classifier.

const MOST = 8; // labels shown at once: the likeliest
const COLOURS = ["#d9692f", "#4c8bd6", "#5aa469", "#b08ad0", "#c9a227", "#4fb3b3", "#d26a9a", "#8a8f98"];

export class LabelView {
  /** @param {HTMLElement} bars @param {HTMLCanvasElement} canvas @param {{labels: string[], kind: string}} task */
  constructor(bars, canvas, task) {
    Object.assign(this, { bars, canvas, task, answers: [] });
  }

  clear() {
    this.answers = [];
    this.bars.replaceChildren();
    this.canvas.width = 1;
  }

  /** The answer after one token more. @param {any} answer */
  add(answer) {
    this.answers.push(answer);
    this.show(answer);
  }

  /** One answer as bars. @param {any} answer */
  show(answer) {
    if (this.task.kind === "regression") {
      this.bars.textContent = `${answer.label}: ${answer.value.toPrecision(4)}`;
      return;
    }
    const likeliest = answer.probs.map((_, k) => k).sort((a, b) => answer.probs[b] - answer.probs[a]).slice(0, MOST);
    this.bars.replaceChildren(...likeliest.sort((a, b) => a - b).map((k) => {
      const row = document.createElement("label"), meter = document.createElement("meter");
      meter.value = answer.probs[k];
      row.append(`${this.task.labels[k]} ${(100 * answer.probs[k]).toFixed(1)}%`, meter);
      row.className = (answer.labels ?? [answer.label]).includes(this.task.labels[k]) ? "given" : "";
      return row;
    }));
  }

  /** How the answer formed: a column a token, the labels' shares one above the other. */
  draw() {
    const { answers, canvas, task } = this;
    canvas.width = Math.max(1, answers.length);
    canvas.height = 64;
    const context = canvas.getContext("2d", { alpha: false });
    const values = task.kind === "regression" ? shares(answers.map((answer) => answer.value)) : answers.map((answer) => answer.probs);
    values.forEach((probs, x) => {
      const total = Math.max(1, probs.reduce((sum, p) => sum + p, 0));
      let top = 0;
      probs.forEach((p, k) => {
        context.fillStyle = COLOURS[k % COLOURS.length];
        context.fillRect(x, top, 1, 64 * p / total);
        top += 64 * p / total;
      });
    });
  }
}

/** Numbers as heights between their least and their largest. @param {number[]} values */
function shares(values) {
  const least = Math.min(...values), span = Math.max(...values) - least || 1;
  return values.map((value) => [(value - least) / span]);
}
