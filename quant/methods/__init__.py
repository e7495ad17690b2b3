"""Methods: each folder is one way to make a variant, and its `METHOD` answers all that the rest of the project asks of it.

A folder may hold two texts besides: `about.md.jinja`, its paragraphs of the report, and `card.md.jinja`, how a reader of the
Hub opens what it made. A method whose folder holds those needs no line elsewhere: a row of params.yaml names the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.errors import InputError

if TYPE_CHECKING:
    from quant.model.inventory import Inventory
    from quant.model.recipe import Recipe

HERE = Path(__file__).parent
UNQUANTIZED, OWN = "float", "quant"  # the base's method; the project's own, which a recipe on the command line is for
Values = Mapping[str, Any]  # the parameters of a row, its method's defaults included; plain, as JSON gives them back
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Look:
    """How a method's marks look in every figure. hatch: of bars, so that they are told apart in grey too."""

    colour: str
    marker: str
    hatch: str = ""


@dataclass(frozen=True)
class Sizes:
    """A variant's bytes, predicted: of its files, of its weights in memory, and of memory while it is made; note: what else to
    know. prepared_bytes: of what the method prepares for all of its variants."""

    file_bytes: float
    held_bytes: float
    build_bytes: float
    note: str | None = None
    prepared_bytes: float = 0


@dataclass(frozen=True)
class Method:
    """The contract. Its functions take a row's `Values`, as `resolve` returned them.

    label: for headings and legends, such as "from scratch".
    resolve(defaults, row): a row with all its parameters, `defaults` being the section of params.yaml that is called like the
        method ({} where there is none). Raises InputError for a row that is wrong. Imports nothing heavy.
    build(base, prepared, values, out, tell): make the variant of the model in the folder `base` in the folder `out`, which
        appears whole or not at all; prepared: the folder that `prepare` filled; tell: is given lines for the log.
    sizes(inventory, folder, values): its bytes, from the inventory of the model's weights and the folder that holds the model's
        config and tokenizer. Raises InputError where the variant can't be made.
    nominal_bits(values): the width of most of its codes; None where nothing is quantized.
    runtime: what opens its folder, a name that quant.runners knows.
    prepare(base, out): make once what all variants of the method share; None: nothing.
    recipe(values): which weights it quantizes and how it stores them, as a recipe; None where no recipe says that.
    libraries: distributions, by their names in requirements.txt, that decide what it makes or how it runs.
    imports: modules to import before a measurement, so that no time of loading holds an import.
    published_name(values, model): the name on the Hub of its one file of weights; None: files keep their names.
    hub_library: what the Hub calls the library that opens it. needs_code: opens only with this project at hand.
    """

    label: str
    resolve: Callable[[Values, Values], dict]
    build: Callable[[Path, Path, Values, Path, Tell], None]
    sizes: Callable[[Inventory, Path, Values], Sizes]
    nominal_bits: Callable[[Values], int | None]
    runtime: str = "transformers"
    prepare: Callable[[Path, Path], None] | None = None
    recipe: Callable[[Values], Recipe | None] = lambda _: None
    libraries: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    look: Look | None = None
    published_name: Callable[[Values, str], str] | None = None
    hub_library: str = "transformers"
    needs_code: bool = False
    name: str = ""  # of its folder; filled in by `load`

    def text(self, name: str) -> str | None:
        """A text of its folder, such as about.md.jinja; None where it has none."""
        path = HERE / self.name / name
        return path.read_text(encoding="utf-8") if path.is_file() else None


def names() -> list[str]:
    """The methods there are."""
    return sorted(path.parent.name for path in HERE.glob("*/__init__.py"))


def load(name: str) -> Method:
    """The method of a folder. Raises InputError where there is no such folder."""
    if name not in names():
        raise InputError(f"method is {name!r}; expected one of {', '.join(names())}, the folders of quant/methods")
    return replace(import_module(f"quant.methods.{name}").METHOD, name=name)
