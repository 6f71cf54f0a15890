"""The documents name what there is: pages, links, modules, public names."""

import re

import pytest
from places import ROOT

import spikegpt

SOURCES = ROOT / "src" / "spikegpt"
ELSEWHERE = {"cli", "hf", "lm_eval_adapter", "lazy", "__main__", "__init__"}
"""Commands, classes of other libraries (docs/huggingface.md), and what has no API of its own."""
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_of_the_pages_beside_the_docs_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [link for link in LINK.findall(text) if not (ROOT / link).exists()] == []


def test_every_part_is_on_the_api_page():
    """Its modules follow by themselves."""
    listed = set(re.findall(r"^::: spikegpt\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M))
    parts = {path.stem for path in SOURCES.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert listed == parts - ELSEWHERE


def test_every_public_name_has_a_docstring():
    named = [name for name in spikegpt.__all__ if name != "__version__"]
    assert [name for name in named if not (getattr(spikegpt, name).__doc__ or "").strip()] == []
