"""What benches score on: a model and a text of their own choice, with the base's predictions, in a temporary folder."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from quant.command import Parser
from quant.hub.source import ModelSource
from quant.methods import Method, Preparation
from quant.quality.protocol import ScoringProtocol
from quant.text.source import TextSource


def add_arguments(parser: Parser, params: Mapping) -> None:
    """Arguments that choose the model and the texts; their defaults are those of params.yaml."""
    parser.add_argument("--model", default=params["model"]["source"], help="a folder, or a Hub id")
    parser.add_argument("--text", default=params["data"]["source"], help="the evaluated text, named as data.source")
    parser.add_argument("--calibrate", default=params["calibration"]["text"], help="the calibration text, named in the same way")
    parser.add_argument("--line", default=params["evaluate"]["line"], help="template of a line of the text")


class Ground:
    """The base, the text and the base's predictions. given: the parsed arguments. lines: of the text, from the first; None: all.

    original: the metrics of the base.
    """

    def __init__(self, folder: Path, given: Namespace, params: Mapping, lines: int | None = None):
        from quant.hub.fetch import fetch_model
        from quant.quality.evaluate import evaluate_base
        from quant.text.corpus import write_corpus
        from quant.text.load import load_corpus
        from quant.text.read import read_corpus

        self.folder, self.params, self.given = folder, params, given
        self.base, self.text, self.private = (folder / name for name in ("base", "text", "private"))
        line = given.line.encode().decode("unicode_escape")
        self.protocol = ScoringProtocol.from_dict({**params["evaluate"], "line": line})
        fetch_model(ModelSource(given.model), self.base)
        write_corpus(read_corpus(TextSource(given.text, sentences=lines)), self.text, self.private)
        self.corpus = load_corpus(self.text, self.private)
        self.original = evaluate_base(self.base, self.corpus, self.protocol, "cpu", folder / "reference")["metrics"]

    def prepare(self, method: Method, wants: list[Mapping]) -> Path:
        """Write what the method's variants share; returns its folder."""
        out = self.folder / "prepared" / method.name
        calibration = {**self.params["calibration"], "text": self.given.calibrate}
        method.prepare(Preparation(self.base, self.text, self.private, calibration, {"source": self.given.text},
                                   vars(self.protocol), wants), out)
        return out

    def evaluate(self, out: Path) -> dict:
        """Quality and size of a variant, as quant.quality.evaluate gives them."""
        from quant.quality.evaluate import evaluate

        return evaluate(out, self.base, self.corpus, self.protocol, "cpu", self.folder / "reference")
