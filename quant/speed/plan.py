"""The section `benchmark` of params.yaml: prompts, tokens, rounds and threads of a measurement, and the wait before it."""

from __future__ import annotations

from dataclasses import dataclass

from quant.config import is_whole, known_keys
from quant.errors import InputError


@dataclass(frozen=True)
class TimingPlan:
    """The plan of a measurement.

    prompts: lengths in tokens: of the prompt before generation (prefill), and of a longer one (prefill_long). tokens: number to
    generate. rounds: repetitions after the warm-up. threads: of every runtime. wait: most seconds to wait for a quiet machine;
    0 = none.
    """

    prompts: tuple[int, ...] = (128, 512)
    tokens: int = 64
    rounds: int = 4
    threads: int = 2
    wait: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.prompts, list | tuple) or not 1 <= len(self.prompts) <= 2:
            raise InputError(f"benchmark.prompts is {self.prompts!r}; expected one or two lengths such as [128, 512]")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        for key in ("prompts", "tokens", "rounds", "threads"):
            found = getattr(self, key)
            values = found if key == "prompts" else (found,)
            if not all(is_whole(value) for value in values):
                raise InputError(f"benchmark.{key} is {found!r}; expected whole numbers from 1")
        if not is_whole(self.wait, 0):
            raise InputError(f"benchmark.wait is {self.wait!r}; expected whole seconds, 0 for no wait")

    @classmethod
    def from_dict(cls, values: dict) -> TimingPlan:
        return cls(**known_keys(cls, values, "benchmark"))

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text that the plan needs."""
        return max(self.prompts[0] + self.tokens, *self.prompts)

    def long_prompt(self, context: int) -> int | None:
        """Tokens of the second prompt, cut to `context`; None where it is then not longer than the first."""
        length = min(self.prompts[-1], context)
        return length if length > self.prompts[0] else None
