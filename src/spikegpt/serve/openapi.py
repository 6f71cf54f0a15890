"""`/openapi.json`: only what this server answers, with the numbers of its model, so that what it allows is accepted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .service import Service

WRITING = ("/v1/completions", "/v1/chat/completions")


def described(
    whole: Callable[[], dict[str, Any]], service: Callable[[], Service | None]
) -> Callable[[], dict[str, Any]]:
    """A function that gives the description: of all routes while the model is loading, then of those that it serves."""
    made: list[dict[str, Any]] = []

    def describe() -> dict[str, Any]:
        ready = service()
        if ready is None:
            return whole()
        if not made:
            made.append(_narrowed(copy.deepcopy(whole()), ready))
        return made[0]

    return describe


def _narrowed(description: dict[str, Any], service: Service) -> dict[str, Any]:
    for path in WRITING if service.labels is not None else ("/classify",):
        description["paths"].pop(path, None)
    if service.labels is not None:
        field = description["components"]["schemas"]["Classify"]["properties"]["input"]
        pairs = service.labels.classifier.task.pairs
        field["anyOf"] = [each for each in field["anyOf"] if ("prefixItems" in each.get("items", {})) == pairs]
    if service.settings.chat_template is None:
        description["paths"].pop("/v1/chat/completions", None)
    for node in list(_nodes(description)):
        if node.pop("x-token", False):
            node["exclusiveMaximum"] = service.vocabulary
        if (values := node.pop("patternProperties", None)) is not None:  # of logit_bias: its names are tokens
            (node["additionalProperties"],) = values.values()
            node["propertyNames"] = {"pattern": f"^({below(service.vocabulary)})$"}
    return description


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    for inside in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(inside)


def below(limit: int) -> str:
    """A regular expression of the decimal numbers from 0 to limit - 1, without leading zeros."""
    last = str(limit - 1)
    found = [last]
    for at, digit in enumerate(last):
        least, most = (1 if at == 0 and len(last) > 1 else 0), int(digit) - 1
        if least <= most:
            found.append(f"{last[:at]}[{least}-{most}]" + f"[0-9]{{{len(last) - at - 1}}}" * (at + 1 < len(last)))
    if len(last) > 1:
        found += ["[0-9]", *(f"[1-9][0-9]{{{length - 1}}}" for length in range(2, len(last)))]
    return "|".join(found)
