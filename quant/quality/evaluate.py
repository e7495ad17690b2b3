"""Measures a variant's quality and size; the output is deterministic to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quant.cluster.pieces import over_machines, parts_of_work
from quant.device import machine_kind, resolve_device
from quant.errors import InputError
from quant.files import atomic_folder, significant
from quant.model.checkpoint import Checkpoint
from quant.outside import read_json
from quant.progress import MIB
from quant.quality import bootstrap
from quant.quality.bootstrap import Blocks, difference
from quant.quality.protocol import ScoringProtocol
from quant.quality.reference import Recorded, Recorder, Reference, join_recorded
from quant.quality.score import (
    ModelPredictions,
    Predictions,
    ScoredPart,
    Scores,
    divergence,
    join_parts,
    score_part,
    summarize,
)
from quant.quality.windows import Tokens, tokenize
from quant.runners import Runner, open_runner, opening_of
from quant.runners.sizes import disk_bytes, held_bytes, size_breakdown
from quant.text.corpus import Corpus

NOTED = ("calibration", "example", "allocation", "peer")  # entries of a variant's manifest, of how it was made


def evaluate_base(base: Path, corpus: Corpus, protocol: ScoringProtocol, device: str, reference: Path) -> dict:
    """Quality and size of the base, for JSON. Writes its predictions to the folder `reference`, for `evaluate`."""
    tokens = tokenize(corpus, base, protocol)
    with atomic_folder(reference) as folder:
        found = _in_parts(partial(_evaluate_base_part, base, tokens, protocol, device, folder.absolute()))
        join_recorded(folder, [(part.places, recorded) for part, _, recorded in found])
    scores = join_parts([part for part, *_ in found], tokens)
    return _result(base, base, found, scores, corpus, protocol, tokens)


def evaluate(folder: Path, base: Path, corpus: Corpus, protocol: ScoringProtocol, device: str, reference: Path) -> dict:
    """Quality of the variant in `folder` compared with the base, bytes of its weights, the scoring protocol, and what its
    manifest notes of how it was made, for JSON.

    reference: the folder that `evaluate_base` wrote.
    """
    tokens = tokenize(corpus, base, protocol)
    found = _in_parts(partial(_evaluate_part, folder, base, tokens, protocol, device, reference))
    scores = join_parts([part for part, _ in found], tokens)
    return {**_result(folder, base, found, scores, corpus, protocol, tokens), **_noted(folder)}


def _in_parts(work: Callable) -> list:
    """[work((i, n)) for i in range(n)], with n tasks on a cluster; a part's result begins with a ScoredPart and an Opened.

    Raises InputError where machines of several kinds took part.
    """
    count = parts_of_work()
    found = over_machines(work, [(number, count) for number in range(count)])
    kinds = sorted({opened.machine for _, opened, *_ in found})
    if len(kinds) > 1:
        raise InputError(f"parts of one evaluation ran on {' and '.join(kinds)}, whose last digits differ; keep it to machines "
                         "of one kind, or unset QUANT_PARTS")
    return found


def _opened(found: list) -> Opened:
    """Of the first part that had something to score: bitsandbytes changes the dtype of biases at a model's first call."""
    return next(opened for scored, opened, *_ in found if len(scored.places))


@dataclass(frozen=True)
class Opened:
    """What a result tells of a model in memory. machine: the kind of processor or GPU that ran it."""

    context: int
    held_bytes: dict
    size_breakdown: list
    module_counts: dict
    machine: str

    @classmethod
    def of(cls, model: Runner, device: str) -> Opened:
        return cls(model.context, held_bytes(model), size_breakdown(model.tensors()), model.module_counts(), machine_kind(device))


def _evaluate_base_part(base: Path, tokens: Tokens, protocol: ScoringProtocol, device: str, folder: Path,
                        part: tuple[int, int]) -> tuple[ScoredPart, Opened, Recorded]:
    model = open_model(base, protocol, device)
    recorder = Recorder(model, base, tokens, protocol, folder, part)
    scored = score_part(recorder, None, tokens, protocol, part)
    return scored, Opened.of(model, device), recorder.finish()


def _evaluate_part(folder: Path, base: Path, tokens: Tokens, protocol: ScoringProtocol, device: str, reference: Path,
                   part: tuple[int, int]) -> tuple[ScoredPart, Opened]:
    model = open_model(folder, protocol, device)
    before = predictions_of_base(base, tokens, protocol, device, reference)
    return score_part(ModelPredictions(model), before, tokens, protocol, part), Opened.of(model, device)


def open_model(folder: Path, protocol: ScoringProtocol, device: str) -> Runner:
    """The model in `folder`, for windows of the protocol's length."""
    return open_runner(folder, device=resolve_device(device), max_tokens=protocol.context)


def predictions_of_base(base: Path, tokens: Tokens, protocol: ScoringProtocol, device: str, reference: Path) -> Predictions:
    """The base's predictions: those that `evaluate_base` stored in the folder `reference`, or else the running base's."""
    if Reference.exists_in(reference):
        return Reference(reference, base, tokens, protocol, resolve_device(device))
    return ModelPredictions(open_model(base, protocol, device))


def _result(folder: Path, base: Path, found: list, scores: Scores, corpus: Corpus, protocol: ScoringProtocol,
            tokens: Tokens) -> dict:
    """For JSON. found: of every part, as `_in_parts` gives it."""
    model = _opened(found)
    return {
        **_size(folder, base, model, summarize(scores)),
        **_distance(scores),
        "protocol": {
            **protocol.describe(model.context), "source": corpus.source, "split": corpus.split, "sentences": len(corpus.lines),
            "tokens": len(scores), "words": scores.words, "bytes": scores.bytes, "token_ids_sha256": tokens.sha256,
        },
        "threads_of_a_product": max(scored.threads for scored, *_ in found),
    }  # fmt: skip


def _noted(folder: Path) -> dict:
    """Entries of the variant's manifest that the report shows, which is written without the models; {} where there are none."""
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    found = {key: manifest[key] for key in NOTED if manifest.get(key)}
    return {"manifest": significant(found)} if found else {}


def _size(folder: Path, base: Path, model: Opened, quality: dict[str, float]) -> dict:
    held, parameters = model.held_bytes, Checkpoint(base).inventory.parameters
    weights = sum(held.values())
    metrics = quality | {
        "bits_per_weight": 8 * weights / parameters,
        "weights_mib": weights / MIB,
        "disk_mib": disk_bytes(opening_of(folder).weights) / MIB,
    }
    return {
        "metrics": significant(metrics),
        "parameters": parameters,
        "held_bytes": held,
        "size_breakdown": model.size_breakdown,
        "module_counts": model.module_counts,
    }


def _distance(scores: Scores) -> dict:
    """Divergence from the base, its intervals, and the sums by block, with which any two variants are compared."""
    blocks = Blocks.cut(scores.places, scores.nll, scores.kld, scores.top1)
    base = Blocks.cut(scores.places, scores.base_nll, 0 * scores.kld, 0 * scores.top1)
    change, kld, bits = difference(blocks, base, "ppl"), bootstrap.mean_kld(blocks), bootstrap.bits_per_byte(blocks)
    intervals = {
        "level": bootstrap.LEVEL, "resamples": bootstrap.RESAMPLES, "seed": bootstrap.SEED,
        "ppl_change_pct": [change.low, change.high], "kld_mnats": [kld.low, kld.high], "bits_per_byte": [bits.low, bits.high],
        "is_significant": change.is_significant,
    }  # fmt: skip
    return {
        "divergence": significant(divergence(scores)),
        "intervals": significant(intervals),
        "blocks": blocks.to_dict(),
    }
