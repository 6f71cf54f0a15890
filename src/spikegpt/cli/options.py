"""Options that several commands share, and options made from the fields of a config."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from ..errors import UsageError

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A model's or a run's directory, `children` (it writes tales), or a preset's name.",
        show_default="the shipped model",
    ),
]
Data = Annotated[
    list[Path],
    typer.Option("--data", "-d", help="A file, folder or glob of text (.txt .md .py .jsonl, .gz .xz); repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...", show_default="the best there is")]
Backend = Annotated[str, typer.Option("--backend", help="Operators: auto, reference, native, triton.")]
Engine = Annotated[
    str,
    typer.Option("--engine", help="event: integers, on the CPU. fixed: nothing but integers. float. auto: as packed."),
]
ReferenceGeneration = Annotated[
    bool,
    typer.Option("--reference-generation", help="Compute what the published script generates with (docs/parity.md)."),
]

Command = TypeVar("Command", bound=Callable[..., Any])


def options_from(config: type) -> Callable[[Command], Command]:
    """Give a command that takes `**settings` an option for each field of the dataclass `config`.

    The field's docstring is the help, its default the default.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        hints, docs = get_type_hints(config), _field_docs(config)
        made = [_option(field, hints[field.name], docs.get(field.name, "")) for field in dataclasses.fields(config)]
        command.__signature__ = signature.replace(parameters=own + made)  # pyright: ignore[reportFunctionMemberAccess]
        return command

    return decorate


def given_options(context: typer.Context) -> set[str]:
    """Names of the command's options that were given, not left at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def settings_from(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` strings as a dictionary: values are JSON, else text; `a.b=1` is nested."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair!r} must be key=value")
        *outer, last = key.split(".")
        inside = settings
        for name in outer:
            inside = inside.setdefault(name, {})
            if not isinstance(inside, dict):
                raise UsageError(f"--set {pair!r}: {name} has a value already and no fields")
        inside[last] = _value(text)
    return settings


def _option(field: dataclasses.Field[Any], hint: Any, doc: str) -> inspect.Parameter:
    option = Annotated[hint, typer.Option(help=doc)]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=option)


def _field_docs(config: type) -> dict[str, str]:
    """The string below each field of a dataclass; none where the source is not at hand."""
    try:
        source = inspect.getsource(config)
    except OSError:
        return {}
    (tree,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for field, doc in zip(tree.body, tree.body[1:], strict=False):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
