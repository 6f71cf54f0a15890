"""What `spikegpt spikify --by-block` prints: what each part lost, and what a run would need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..training.by_block_plan import Plan


def print_report(report: dict[str, Any], source: Path) -> None:
    """What each part lost, and the command that trains all of them together."""
    table = Table(title=f"{report['out']}: {report['activity']:.1%} of the weights read per token")
    for heading in ("part", "weights", "read", "lost", "by itself", "seconds"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for row in report["parts"]:
        form = "{:.3f} nats" if row["part"] == "head" else "{:.1%}"
        lost, alone = form.format(row["loss"]), form.format(row["loss_alone"])
        table.add_row(
            row["part"], f"{row['weights']:,}", f"{row['activity']:.1%}", lost, alone, f"{row['seconds']:.0f}"
        )
    Console().print(table)
    print(
        f"lost: of the variance of the original's residual; of the head, the divergence from its predictions\n"
        f"{report['bits_per_byte']:.4f} bits per byte held out, the original {report['original_bits_per_byte']:.4f}\n"
        f"where all of it fits in memory, train it as a whole: "
        f"spikegpt spikify {report['out']} DST --teacher {source} --activity {report['activity']:.2f} --data ..."
    )


def print_plan(plan: Plan) -> None:
    """What a run over all parts needs."""
    print(
        f"{plan.parts} parts, {plan.weights:,} weights; {plan.tokens:,} tokens for each\n"
        f"memory: {plan.memory / 1e9:.2f} GB (all parts at once: {plan.memory_end_to_end / 1e9:.2f} GB)\n"
        f"disk: {plan.disk / 1e9:.2f} GB\n"
        f"work: {plan.operations:.2e} operations, {plan.hours(1e11):,.1f} hours at 100 GFLOP/s"
    )
