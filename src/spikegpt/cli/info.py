"""`spikegpt info`."""

from __future__ import annotations

from .options import Json, Model


def info(model: Model = None, json: Json = False) -> None:
    """Show the model, the operators and the machine."""
    from .show import print_json, print_table
    from .start import describe

    facts = describe(model)
    if json:
        print_json(facts)
    else:
        print_table(facts)
