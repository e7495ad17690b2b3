"""List the licence of every installed distribution, as each states it: python -m quant.supply.licences"""

from __future__ import annotations

from importlib.metadata import PackageMetadata, distributions

from quant.command import Parser, run
from quant.errors import printable

NOT_STATED = "not stated"


def main(arguments: list[str]) -> None:
    Parser(prog="python -m quant.supply.licences", description=__doc__.partition("\n")[0]).parse_args(arguments)
    found = {(one.metadata["Name"], one.version): licence(one.metadata) for one in distributions()}
    width = max(len(f"{name} {version}") for name, version in found)
    for (name, version), text in sorted(found.items(), key=lambda item: item[0][0].lower()):
        print(f"{name} {version}".ljust(width), text, sep="  ")


def licence(metadata: PackageMetadata) -> str:
    """The licence in a distribution's metadata: its expression, else its classifiers, else the first line of its text."""
    if expression := metadata.get("License-Expression"):
        return printable(expression, 200)
    classified = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier", []) if line.startswith("License :: ")]
    text = (metadata.get("License") or "").strip().splitlines()
    return printable(", ".join(classified) or (text[0] if text else NOT_STATED), 200)


if __name__ == "__main__":
    run(main)
