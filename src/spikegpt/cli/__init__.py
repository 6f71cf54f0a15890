"""The command line: each subcommand imports what it needs when it runs, and is one call.

A new command is a module here with a function of the same name, and a line in `COMMANDS`. Modules import nothing heavy
at their top: `spikegpt --help` imports them all.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer

from ..errors import UserError
from .classify import classify
from .convert import convert
from .demo import demo
from .draw import draw
from .evaluate import evaluate
from .export import app as export_app
from .finetune import finetune
from .generate import generate
from .info import info
from .map import map
from .pack import pack
from .profile import profile
from .serve import serve
from .spikify import spikify
from .trace import trace
from .train import train
from .verify import verify

COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "generate": generate,
    "serve": serve,
    "train": train,
    "finetune": finetune,
    "classify": classify,
    "eval": evaluate,
    "draw": draw,
    "convert": convert,
    "spikify": spikify,
    "pack": pack,
    "trace": trace,
    "profile": profile,
    "verify": verify,
    "map": map,
    "info": info,
}

app = typer.Typer(
    name="spikegpt",
    help="A language model made of spiking neurons: train, generate, evaluate.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help takes half the time: nothing of rich is imported
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.command("evaluate", hidden=True)(evaluate)
app.add_typer(export_app, name="export")


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Show the version.", is_eager=True, callback=lambda yes: _show_version(yes)
    ),
) -> None:
    pass


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    _prepare_streams()
    warnings.showwarning = _warn
    code = _run(list(sys.argv[1:] if args is None else args) or ["--help"])
    sys.exit(_flushed(code))


def _run(args: list[str]) -> int:
    try:
        result = typer.main.get_command(app)(args=args, prog_name="spikegpt", standalone_mode=False)
    except UserError as error:
        return _complain(str(error), error.exit_code)
    except _USAGE as error:
        return _complain(f"{error.format_message()} (see spikegpt --help)", 2)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        return _quiet_pipe()
    except OSError as error:
        reason = error.strerror or str(error)
        return _complain(f"{error.filename}: {reason}" if error.filename else reason, 1)
    except (MemoryError, RuntimeError) as error:
        from ..training.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _complain("out of memory; choose a smaller model, batch or text", 1)
    # typer hands back the code of an Exit (Ctrl-C among them) as the result.
    return result if isinstance(result, int) else 0


# Every mistake on the command line is one of these; typer exports only BadParameter.
_USAGE: Any = typer.BadParameter.__mro__[1]


def _complain(message: str, code: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


def _warn(message: Warning | str, *_: Any) -> None:
    """A warning is one line too, without the place in the code where it arose."""
    print("warning:", " ".join(str(message).split()), file=sys.stderr)


def _prepare_streams() -> None:
    """Text is UTF-8 whatever the locale; a closed stream swallows it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _quiet_pipe()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _complain(f"cannot write the output: {error.strerror}", 1)
    return code


def _quiet_pipe() -> int:
    """The reader of our output has left; what Python still holds for it goes nowhere, without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _show_version(yes: bool) -> None:
    if yes:
        from .. import __version__

        print(f"spikegpt {__version__}")
        raise typer.Exit
