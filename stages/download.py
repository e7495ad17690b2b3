"""Fetch the model and the text that params.yaml names, checked by sha256."""

from quant.errors import InputError
from quant.pipeline import BASE, PRIVATE, TEXT, parameters, run


def main() -> None:
    from quant.hub.fetch import fetch_model, obstacle
    from quant.hub.source import ModelSource
    from quant.text.corpus import write_corpus
    from quant.text.read import read_corpus
    from quant.text.source import TextSource

    params = parameters()
    model, text = ModelSource.from_dict(params["model"]), TextSource.from_dict(params["data"])
    try:
        corpus = read_corpus(text)  # first, so that an unreadable text is reported before a large download
    except InputError as error:
        raise InputError(" And ".join(filter(None, (f"{error}.", obstacle(model))))) from None
    fetch_model(model, BASE)
    write_corpus(corpus, TEXT, PRIVATE)


run(main)
