"""Fetch the model and the corpus that params.yaml names: python stages/download.py"""

from pathlib import Path

from common import parameters, run

from quant.corpus import read_corpus, write_corpus
from quant.hub import fetch_model


def main() -> None:
    params = parameters()
    model, data = params["model"], params["data"]
    fetch_model(model["source"], model["revision"], Path("models/base"))
    write_corpus(read_corpus(data["source"], data["sentences"]), Path("data/eval"))


run(main)
