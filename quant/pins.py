"""Versions pinned in requirements.txt, recorded for the results that depend on them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from quant.errors import InputError

COMPUTE = ("torch", "transformers", "tokenizers", "numpy", "safetensors", "numba", "llvmlite")  # every number depends on these
REPORT = ("matplotlib", "jinja2", "pypandoc_binary", "typst")  # the look of figures and report depends on these


def pinned(requirements: Path, names: Iterable[str]) -> dict[str, str]:
    """The pinned version of each name. Raises InputError for a name without a pin."""
    text = requirements.read_text(encoding="utf-8")
    found = {_normal(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s#;]+)", text, re.MULTILINE)}
    missing = [name for name in names if _normal(name) not in found]
    if missing:
        raise InputError(f"{requirements} pins no version of {', '.join(missing)}; expected a line such as {missing[0]}==1.2.3")
    return {name: found[_normal(name)] for name in names}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
