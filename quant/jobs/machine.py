"""What stages on this machine share: its memory, by the forecasts of quant.preflight, and its GPU, which one has at a time."""

from __future__ import annotations

from pathlib import Path

from quant.errors import InputError
from quant.memory import available_memory
from quant.pipeline import BASE, parameters

LIBRARIES = 1_500_000_000  # bytes that Python and its libraries take in a stage, at most
GPU = Path("/dev/nvidiactl")  # of NVIDIA's driver; to ask CUDA would make every fork of this process useless for it
MODELS_RUN_IN = ("prepare", "quantize", "evaluate", "sensitivity", "relative", "benchmark")  # how names of stages begin
LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def free_memory() -> int:
    """Bytes that programs can allocate here: the machine's, or less in a container with a limit."""
    limit = LIMIT.read_text().strip() if LIMIT.is_file() and USED.is_file() else "max"
    return min(available_memory(), int(limit) - int(USED.read_text())) if limit.isdecimal() else available_memory()


def computes(stage: str) -> bool:
    """Whether a stage, by its name, may put a model on the GPU."""
    return stage.startswith(MODELS_RUN_IN)


def computes_on_gpu() -> bool:
    """Whether models run on a GPU here, by params.yaml."""
    try:
        return GPU.exists() and parameters().get("device") != "cpu"
    except InputError:  # told by the stages
        return False


def memory_of_stages() -> dict[str, int]:
    """Bytes that stages need by the forecasts for the model in models/base, by the stage's name; {} before it is there.

    A stage that is not listed needs what its libraries take.
    """
    if not (BASE / "config.json").is_file():
        return {}
    from quant.model.checkpoint import Checkpoint
    from quant.preflight.forecast import forecasts

    try:
        inventory = Checkpoint(BASE).inventory
        base, *others = forecasts(inventory, BASE, parameters())
    except InputError:  # told by the stage itself
        return {}
    needs = {"evaluate-base": base.sizes.held_bytes, "prepare": base.sizes.held_bytes, "sensitivity": 2 * base.sizes.held_bytes}
    for one in others:
        if one.sizes:
            needs[f"quantize@{one.name}"] = one.sizes.build_bytes
            needs[f"evaluate@{one.name}"] = base.sizes.held_bytes + (one.sizes.held_bytes or base.sizes.held_bytes)
    return {name: LIBRARIES + int(need) for name, need in needs.items()}
