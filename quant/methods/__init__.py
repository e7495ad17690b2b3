"""Methods: each folder is one way to make a variant. Its `METHOD` is the whole interface to the rest of the project.

Beside the code a folder may hold templates: `about.md.jinja`, its paragraph of the report; `chapter.md.jinja`, a chapter of the
report; `card.md.jinja`, the section of a model card that shows how to open a variant. To add a method, add a folder; rows of
params.yaml choose it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.errors import InputError

if TYPE_CHECKING:
    from quant.model.inventory import Inventory
    from quant.model.recipe import Recipe
    from quant.model.selection import Selected

HERE = Path(__file__).parent
UNQUANTIZED = "float"  # the method of the base
FROM_SCRATCH = "quant"  # this project's own quantizer: the method of a recipe given on a command line
Values = Mapping[str, Any]  # the parameters of a row with its method's defaults; plain values that survive JSON
Tell = Callable[[str], None]  # receives lines for the log


@dataclass(frozen=True)
class Look:
    """Colour, marker and hatch of a method in every figure. hatch: distinguishes bars in grayscale too."""

    colour: str
    marker: str
    hatch: str = ""


@dataclass(frozen=True)
class Sizes:
    """Predicted bytes of a variant.

    file_bytes: its files of weights. held_bytes: its weights in memory. Both None where they can't be predicted.
    build_bytes: memory while it is built.
    note: a remark for the user, or None. prepared_bytes: the files that `Method.prepare` writes.
    """

    file_bytes: float | None
    held_bytes: float | None
    build_bytes: float
    note: str | None = None
    prepared_bytes: float = 0


@dataclass(frozen=True)
class Preparation:
    """What `Method.prepare` may use. base: folder of the model. evaluated, private: folders of the text that is measured, and of
    texts that may not be shared. calibration, data, evaluate: sections of params.yaml. wants: what `Method.wants` gave for each
    of the method's rows, without repetition."""

    base: Path
    evaluated: Path | None = None
    private: Path | None = None
    calibration: Mapping = field(default_factory=dict)
    data: Mapping = field(default_factory=dict)
    evaluate: Mapping = field(default_factory=dict)
    wants: Sequence[Mapping] = ()


@dataclass(frozen=True)
class Method:
    """One way to make variants. Every function takes the parameters of a row as `resolve` returned them.

    label: for headings and legends, such as "from scratch".
    resolve(defaults, row): all parameters of a row. defaults: the section of params.yaml with the method's name, or {}.
        Raises InputError for a wrong row. Imports nothing heavy.
    build(base, prepared, values, out, tell): write the variant of the model in the folder `base` to the folder `out`, which
        appears whole or not at all. prepared: the folder that `prepare` wrote. tell: receives lines for the log. Raises Refused
        where the variant can't be made, and another InputError for what keeps all variants from it, such as a full disk.
    sizes(inventory, folder, values): predicted bytes of the variant. folder: holds the model's config and tokenizer.
        Raises Refused where the variant can't be made or run here.
    nominal_bits(values): width of most codes in bits; None where nothing is quantized.
    runtime: the module of quant.runners.runtimes that opens the variant.
    prepare(given, out): write the files that all variants of the method share; None: there are none.
    wants(values): what a row needs of `prepare` beyond what all rows need, as values that survive JSON; {}: nothing.
    recipe(values): the weights it quantizes and their schemes, as a recipe; None where no recipe expresses that.
    selected(inventory, prepared, values): the weights and their schemes where no recipe expresses them. Raises InputError where
        `prepare` has not yet written what they depend on. None: there is nothing to show.
    properties(): JSON schema of each parameter of a row; defaults(): of the section of params.yaml with the method's name, None
        where it takes the same.
    here(values): what a refusal of the row depends on that DVC does not track, such as the processor: by name, values that
        survive JSON. The row is made again where that changed.
    libraries: distributions of requirements.txt whose version changes the variant or its speed.
    imports: modules to import before loading is timed. look: its style in figures; None: the report assigns one.
    published_name(values, model): name on the Hub of the single file of weights; None: files keep their names.
    hub_library: the Hub's name of the library that opens it. needs_code: only this project opens it.
    """

    label: str
    resolve: Callable[[Values, Values], dict]
    build: Callable[[Path, Path, Values, Path, Tell], None]
    sizes: Callable[[Inventory, Path, Values], Sizes]
    nominal_bits: Callable[[Values], int | None]
    runtime: str = "transformers"
    prepare: Callable[[Preparation, Path], None] | None = None
    wants: Callable[[Values], dict] = lambda _: {}
    recipe: Callable[[Values], Recipe | None] = lambda _: None
    selected: Callable[[Inventory, Path, Values], list[Selected]] | None = None
    properties: Callable[[], dict[str, dict]] = dict
    defaults: Callable[[], dict[str, dict]] | None = None
    here: Callable[[Values], dict] = lambda _: {}
    libraries: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    look: Look | None = None
    published_name: Callable[[Values, str], str] | None = None
    hub_library: str = "transformers"
    needs_code: bool = False
    name: str = ""  # of its folder; filled in by `load`

    def text(self, name: str) -> str | None:
        """Content of a template in the method's folder, such as about.md.jinja; None where there is no such file."""
        path = HERE / self.name / name
        return path.read_text(encoding="utf-8") if path.is_file() else None


def names() -> list[str]:
    """Names of all methods."""
    return sorted(path.parent.name for path in HERE.glob("*/__init__.py"))


def load(name: str) -> Method:
    """The method of this name. Raises InputError where quant/methods has no such folder."""
    if name not in names():
        raise InputError(f"method is {name!r}; expected one of {', '.join(names())}, the folders of quant/methods")
    return replace(import_module(f"quant.methods.{name}").METHOD, name=name)
