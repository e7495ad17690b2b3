"""Forget refusals that no longer hold: python -m quant.retry

DVC makes a row again when its parameters, the model or the code change. What a refusal may depend on beside these (the processor,
the packages of other quantizers' environment) DVC does not see, so it is kept with the refusal. Where it is another one now, this
command, which `make repro` runs first, removes the refusal, from DVC's cache as well, and `dvc repro` tries the row again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from quant.command import run
from quant.errors import InputError
from quant.outside import read_json
from quant.pipeline import MODELS, REPORTS, parameters
from quant.refusal import Refusal, read_refusal
from quant.variants import rows, variant


def outdated(params: dict) -> list[tuple[str, Path, Refusal]]:
    """Refusals, of rows of params.yaml, that depend on what has changed: the variant, what holds the refusal, the refusal."""
    return [(name, path, refusal) for name, path, refusal in _kept(params)
            if refusal.here and any(_now(name, params).get(key) != value for key, value in refusal.here.items())]


def forget(found: list[tuple[str, Path, Refusal]]) -> list[str]:
    """Remove what holds these refusals, and say so in a line each."""
    lines = []
    for name, path, refusal in found:
        _drop_from_cache(f"{refusal.stage}@{name}", path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        lines.append(f"{name} is tried again, for {', '.join(refusal.here)} changed since it was left out")
    return lines


def _kept(params: dict) -> Iterator[tuple[str, Path, Refusal]]:
    for name in rows(params):
        refusal = read_refusal(MODELS / str(name))
        if refusal:
            yield name, MODELS / str(name), refusal
            continue
        path = REPORTS / "quality" / f"{name}.json"
        if path.is_file() and b'"refused"' in path.read_bytes():
            yield name, path, Refusal.from_dict(read_json(path).get("refused"))


def _now(name: str, params: dict) -> dict:
    from quant.device import machine_kind

    row = variant(name, params)
    return {**row.method.here(row.values), "machine": machine_kind(params.get("device"))}


def _drop_from_cache(stage: str, path: Path) -> None:
    """Remove from DVC's cache what dvc.lock records of `path`, an output of the stage, or DVC would put it back.

    A result that is missing in the cache is not taken from the run cache either.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            for out in repo.stage.collect(stage)[0].outs:
                if out.def_path == str(path) and out.hash_info:
                    Path(out.cache.oid_to_path(out.hash_info.value)).unlink(missing_ok=True)
    except DvcException as error:
        raise InputError(f"DVC can't tell what it keeps of {stage} ({error}); run dvc repro --force {stage}") from None


def main(words: list[str]) -> None:
    if words:
        raise InputError(f"quant.retry takes no arguments; found {' '.join(words)}")
    for line in forget(outdated(parameters())):
        print(line, flush=True)


if __name__ == "__main__":
    run(main)
