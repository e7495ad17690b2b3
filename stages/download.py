"""Fetch the model and the corpus that params.yaml names: python stages/download.py"""

from pathlib import Path

from common import parameters, run

from quant.corpus import TextSource, read_corpus, write_corpus
from quant.fetch import ModelSource, fetch_model


def main() -> None:
    params = parameters()
    model, text = ModelSource.from_dict(params["model"]), TextSource.from_dict(params["data"])
    corpus = read_corpus(text)  # first: a text that can't be had is told before a model of many gigabytes comes
    fetch_model(model, Path("models/base"))
    write_corpus(corpus, Path("data/eval"))


run(main)
