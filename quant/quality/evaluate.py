"""Quality and size of one variant: the same bytes at every run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant.model.architectures import architecture_of
from quant.model.checkpoint import Checkpoint
from quant.text.corpus import Corpus
from quant.files import whole_folder
from quant.quality import bootstrap
from quant.quality.bootstrap import Blocks, difference
from quant.speed.memory import MIB, disk_bytes, held_bytes, ledger
from quant.quality.score import Live, Predictions, Scores, divergence, score, summarize
from quant.quality.reference import Recorder, Reference
from quant.speed.samples import significant
from quant.quality.windows import Protocol, Tokens, tokenize
from quant.runners import Runner, open_runner, resolve_device
from quant.variants import BASE, Variant

REFERENCE = Path("data/reference")


def evaluate(variant: Variant, corpus: Corpus, protocol: Protocol, device: str) -> dict:
    """Quality against the base, and the bytes of the weights; with the protocol that the numbers hold for.

    The base is evaluated first: it leaves its predictions in data/reference, which the others are compared with.
    """
    device = resolve_device(device)
    tokens = tokenize(corpus, BASE, protocol)
    model = open_runner(variant.folder, variant.dtype, device, room=protocol.context)
    if variant.name == "base":
        with _recorded(model, tokens, protocol) as predictions:
            scores = score(predictions, None, tokens, protocol)
    else:
        scores = score(Live(model), _reference(tokens, protocol, device), tokens, protocol)
    return {
        "variant": variant.name,
        **_size(variant, model, summarize(scores)),
        **_distance(scores),
        "protocol": {
            **protocol.describe(model.context), "source": corpus.source, "split": corpus.split, "sentences": len(corpus.lines),
            "tokens": len(scores), "words": scores.words, "bytes": scores.bytes, "token_ids_sha256": tokens.sha256,
        },
    }  # fmt: skip


@contextmanager
def _recorded(base: Runner, tokens: Tokens, protocol: Protocol) -> Iterator[Predictions]:
    with whole_folder(REFERENCE) as folder:
        recorder = Recorder(base, BASE, tokens, protocol, folder)
        yield recorder
        recorder.finish()


def _reference(tokens: Tokens, protocol: Protocol, device: str) -> Predictions:
    if Reference.is_in(REFERENCE):
        return Reference(REFERENCE, BASE, tokens, protocol, device)
    return Live(open_runner(BASE, "float32", device, room=protocol.context))


def _size(variant: Variant, model: Runner, quality: dict[str, float]) -> dict:
    held, parameters = held_bytes(model), count_parameters(BASE)
    weights = sum(held.values())
    metrics = quality | {
        "bits_per_weight": 8 * weights / parameters,
        "weights_mib": weights / MIB,
        "disk_mib": disk_bytes(variant.folder) / MIB,
    }
    return {
        "metrics": significant(metrics),
        "parameters": parameters,
        "held_bytes": held,
        "ledger": ledger(model.tensors()),
        "census": model.census(),
    }


def _distance(scores: Scores) -> dict:
    """Divergence from the base, its intervals, and the sums by block that any two variants are compared by."""
    blocks = Blocks.cut(scores.nll, scores.kld, scores.top1)
    base = Blocks.cut(scores.base_nll, 0 * scores.kld, 0 * scores.top1)
    change, kld = difference(blocks, base, "ppl"), bootstrap.mean_kld(blocks)
    intervals = {
        "level": bootstrap.LEVEL, "resamples": bootstrap.RESAMPLES, "seed": bootstrap.SEED,
        "ppl_change_pct": [change.low, change.high], "kld_mnats": [kld.low, kld.high], "is_real": change.is_real,
    }  # fmt: skip
    return {
        "divergence": significant(divergence(scores)),
        "intervals": significant(intervals),
        "blocks": blocks.to_dict(),
    }


def count_parameters(base: Path) -> int:
    """Weights of the model, tied ones once."""
    checkpoint = Checkpoint(base)
    architecture = architecture_of(checkpoint.config)
    return sum(
        info.count for tensor, info in checkpoint.tensors.items() if architecture.counts(tensor, checkpoint.config)
    )
