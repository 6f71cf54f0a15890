"""Draws segments.svg, a block of an event-driven model as segments between the parts of the host.

python docs/images/segments.py
"""

from pathlib import Path

STYLE = """text{font:13px system-ui,sans-serif;fill:#1b2733}.t{text-anchor:middle}
.s{font-size:11px;fill:#51606f;text-anchor:middle}.h{font-size:15px;font-weight:600}.b{fill:#eef2f6;stroke:#8494a5}.m{fill:#d9e8fb;stroke:#3f74b5;stroke-width:1.4}
.n{fill:#fff3d6;stroke:#c98a00;stroke-width:1.4}.spike{fill:none;stroke:#c98a00;stroke-width:1.6}
.l{fill:none;stroke:#51606f;stroke-width:1.3}.chip{fill:#f6f9f2}.edge{stroke:#4f7a28;stroke-width:1.6;stroke-dasharray:7 5}"""
ARROW = (
    '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0,0 L8,4 L0,8 z" fill="#51606f"/></marker></defs>'
)
WIDTH, HEIGHT = 1120, 590
LEFT, RIGHT = 400, 790
"""Where values cross from the host to neurons, and sums back."""


def text(x: float, y: float, words: str, kind: str = "t") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, words: str, kind: str = "b", below: str = "") -> str:
    """A box whose middle is at height y."""
    lines = text(x + width / 2, y + (-2 if below else 5), words) + (
        text(x + width / 2, y + 14, below, "s") if below else ""
    )
    return f'<rect x="{x}" y="{y - 20}" width="{width}" height="40" rx="6" class="{kind}"/>{lines}'


def neuron(x: float, y: float) -> str:
    return f'<circle cx="{x}" cy="{y}" r="13" class="n"/><path d="M{x - 6},{y + 4} h4 l2,-9 l2,9 h4" class="spike"/>'


def arrow(*points: tuple[float, float]) -> str:
    way = " L".join(f"{x},{y}" for x, y in points)
    return f'<path d="M{way}" class="l" marker-end="url(#a)"/>'


Way = list[tuple[float, float]]


def segment(y: float, matrix: str, before: Way, after: Way) -> list[str]:
    """A value from the host, a neuron, a matrix, its sums back to the host."""
    return [
        arrow(*before, (437, y)), neuron(450, y), arrow((463, y), (500, y)), box(500, y, 110, matrix, "m"),
        arrow((610, y), *after),
    ]  # fmt: skip


def norm_and_shift(y: float, readers: dict[str, float]) -> tuple[list[str], dict[str, Way]]:
    """Norm and token shift of a mix, and the way from there to each reader's height."""
    parts = [box(30, y, 70, "norm"), arrow((100, y), (130, y)), box(130, y, 110, "token shift", below="state: last x")]
    parts += [text(335, at - 6, f"x for {name}", "s") for name, at in readers.items()]
    return parts, {name: [(240, y), (270, y), (270, at)] for name, at in readers.items()}


def time_mix() -> list[str]:
    parts, ways = norm_and_shift(160, {"k": 100, "v": 160, "r": 220})
    parts += [text(30, 74, "time mix", "h"), box(860, 160, 210, "WKV average x sigmoid(r)", below="state: three rows")]
    parts += segment(100, "key", ways["k"], [(965, 100), (965, 140)])
    parts += segment(160, "value", ways["v"], [(860, 160)])
    parts += segment(220, "receptance", ways["r"], [(965, 220), (965, 180)])
    back: Way = [(1070, 160), (1095, 160), (1095, 258), (300, 258), (300, 290)]
    return [*parts, *segment(290, "output", back, [(890, 290)]), box(890, 290, 90, "x += ...")]


def channel_mix() -> list[str]:
    parts, ways = norm_and_shift(440, {"k": 410, "r": 490})
    parts += [text(30, 374, "channel mix", "h"), arrow(*ways["k"], (437, 410)), neuron(450, 410)]
    parts += [arrow((463, 410), (490, 410)), box(490, 410, 90, "key", "m"), arrow((580, 410), (607, 410))]
    parts += [neuron(620, 410), text(620, 386, "relu(k)^2 is a threshold", "s"), arrow((633, 410), (660, 410))]
    parts += [box(660, 410, 90, "value", "m"), arrow((750, 410), (860, 410)), box(860, 410, 130, "y x sigmoid(r)")]
    parts += segment(490, "receptance", ways["r"], [(925, 490), (925, 430)])
    return [*parts, arrow((990, 410), (1010, 410)), box(1010, 410, 90, "x += ...")]


def draw() -> str:
    label = "A block as segments: neurons and matrices between two crossings, the rest on the host"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    field = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    field += f'<rect x="{LEFT}" y="40" width="{RIGHT - LEFT}" height="500" class="chip"/>'
    edges = "".join(f'<path d="M{x},40 V540" class="edge"/>' for x in (LEFT, RIGHT))
    names = [
        text(200, 30, "host", "h"), text((LEFT + RIGHT) / 2 - 70, 30, "neurons and matrices", "h"), text(930, 30, "host", "h"),
        text(LEFT, 560, "values in", "s"), text(RIGHT, 560, "integer sums out", "s"),
        text((LEFT + RIGHT) / 2, 580, "between key and value of the channel mix nothing crosses", "s"),
    ]  # fmt: skip
    parts = [field, edges, *names, *time_mix(), *channel_mix()]
    return "\n".join([f"{head}<style>{STYLE}</style>{ARROW}", *filter(None, parts), "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(), encoding="utf-8")
