"""Train one of the project's own models: `embedded`, `austen` or `austen-small`.

`embedded`, on lines of the embedded grammar, is a frozen stage of DVC: `dvc repro` does not run it, because the model is in git.
The other two, on Jane Austen's novels, take about an hour (`austen`) and a quarter of an hour (`austen-small`) on 2 cores. An
interrupted run resumes at the epoch it was in. Weights are stored in 16 bits.
"""

from dataclasses import dataclass

from quant.errors import InputError
from quant.pipeline import MODELS, TRAINING, run


@dataclass(frozen=True)
class Size:
    """texts: function of quant.training.texts; width: multiples of 256 fit K-quants; dropout: for a corpus read many times."""

    texts: str
    vocabulary: int
    width: int
    layers: int
    dropout: float
    epochs: int


SIZES = {
    "embedded": Size("grammar_texts", 2048, 256, 3, 0.0, 1),
    "austen": Size("novel_texts", 4096, 256, 4, 0.25, 16),
    "austen-small": Size("novel_texts", 4096, 128, 3, 0.1, 16),
}


def main(model: str) -> None:
    if model not in SIZES:
        raise InputError(f"model {model!r}; expected one of {', '.join(SIZES)}")
    from quant.training import texts
    from quant.training.model import CONTEXT, new_model
    from quant.training.tokenizer import make_tokenizer
    from quant.training.train import Schedule, Training, token_stream, windows_of

    size = SIZES[model]
    found = getattr(texts, size.texts)()
    lines = (found.line.replace("{}", line) for text in found.training for line in text)
    tokenizer = make_tokenizer(lines, size.vocabulary, CONTEXT)
    stream, held_out = (token_stream(tokenizer, chosen, found.line) for chosen in (found.training, found.validation))
    trained = new_model(tokenizer, size.width, size.layers, size.dropout)
    Training(trained, Schedule(size.epochs), TRAINING / model).run(stream, windows_of(held_out, CONTEXT), CONTEXT)
    trained.half().save_pretrained(MODELS / model)
    tokenizer.save_pretrained(MODELS / model)


run(main)
