"""Train one of the project's own models, `embedded` or `embedded-small`, on novels by Jane Austen; both are in git.

This takes about 45 minutes (`embedded`) and a quarter of an hour (`embedded-small`) on 2 cores. An interrupted run resumes at the
epoch it was in, and a finished one is only measured again; to train anew, delete data/training/NAME. Weights are stored in 16
bits; training.json beside them says what the model has learnt.
"""

from dataclasses import dataclass

from quant.errors import InputError
from quant.files import atomic_folder, write_json
from quant.pipeline import MODELS, TRAINING, run


@dataclass(frozen=True)
class Size:
    """width: multiples of 256 fit K-quants; dropout: the more weights, the sooner they hold the training text by heart."""

    width: int
    layers: int
    dropout: float


SIZES = {"embedded": Size(256, 4, 0.25), "embedded-small": Size(128, 3, 0.1)}
VOCABULARY, EPOCHS = 4096, 16


def main(model: str) -> None:
    if model not in SIZES:
        raise InputError(f"model {model!r}; expected one of {', '.join(SIZES)}")
    from quant.text.novels import TEST
    from quant.training.measure import learnt
    from quant.training.model import CONTEXT, new_model, save_model
    from quant.training.texts import LINE, novel_texts
    from quant.training.tokenizer import make_tokenizer
    from quant.training.train import Schedule, Training, token_stream, windows_of

    size, texts = SIZES[model], novel_texts()
    tokenizer = make_tokenizer((LINE.replace("{}", line) for text in texts.training for line in text), VOCABULARY, CONTEXT)
    streams = [token_stream(tokenizer, chosen, LINE) for chosen in (texts.training, texts.validation, texts.test)]
    trained = new_model(tokenizer, size.width, size.layers, size.dropout)
    training = Training(trained, Schedule(EPOCHS), TRAINING / model)
    training.run(streams[0], windows_of(streams[1], CONTEXT), CONTEXT)
    with atomic_folder(MODELS / model) as folder:
        save_model(trained, tokenizer, folder)
        found = learnt(trained, *streams, CONTEXT)
        found["training"] |= {"epochs": training.epoch, "best_epoch": training.best_epoch}
        found["test"] |= {"text": TEST.capitalize(), "protocol": "joined/1", "context": CONTEXT, "stride": CONTEXT, "line": LINE}
        write_json(folder / "training.json", found)
    order = found["kneser_ney"]["best_order"]
    print(f"{model}: perplexity {found['test']['perplexity']:.1f} on {found['test']['text']}; Kneser-Ney (order {order}) "
          f"{found['kneser_ney']['test_perplexity'][str(order)]:.1f}")


run(main)
