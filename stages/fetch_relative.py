"""Fetch a model of the section `family`, checked by sha256, into models/relatives."""

from quant.errors import InputError
from quant.pipeline import MODELS, parameters, run


def main(name: str) -> None:
    from quant.hub.family import Family
    from quant.hub.fetch import fetch_model

    source, section = Family.from_dict(parameters()["family"]).source_of(name), f"family.models.{name}"
    try:
        fetch_model(source, MODELS / "relatives" / name, section)
    except InputError as error:
        raise InputError(f"{section}: {error}") from None


run(main)
