"""Fetch the model and the corpus that params.yaml names: python stages/download.py"""

from pathlib import Path

from common import parameters, run

from quant.text.corpus import TextSource, read_corpus, write_corpus
from quant.errors import InputError
from quant.hub.fetch import ModelSource, fetch_model


def main() -> None:
    params = parameters()
    model, text = ModelSource.from_dict(params["model"]), TextSource.from_dict(params["data"])
    try:
        corpus = read_corpus(text)  # first: a text that can't be had is told before a model of many gigabytes comes
    except InputError as error:
        raise InputError(" And ".join(filter(None, (f"{error}.", model.obstacle())))) from None
    fetch_model(model, Path("models/base"))
    write_corpus(corpus, Path("data/eval"))


run(main)
