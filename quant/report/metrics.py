"""The metrics: their names, their units, how they are shown and where. Everything that shows a metric reads it here.

A new metric is computed in quant.quality.evaluate or quant.speed.benchmark, and has a row here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quant.report.wording import number

REPORT, README, CARD, SWEEP, DIFF = "report", "readme", "card", "sweep", "diff"  # the places that show a choice of metrics


@dataclass(frozen=True)
class Metric:
    """One number of a variant.

    key: its name in result files, with its unit; heading: of a table's column; label: of an axis, with the unit; form: of a
    number in a table; decimals: those worth storing; better: "lower" or "higher"; sentence: its meaning for a model card, short;
    meaning: for the README; shown: the places that show it, of REPORT (the report's first table), README, CARD, SWEEP and DIFF
    (`dvc metrics diff`); of_speed: whether only variants that were timed have it.
    """

    key: str
    heading: str
    label: str
    form: str
    decimals: int
    better: str
    sentence: str
    meaning: str
    shown: tuple[str, ...] = ()
    of_speed: bool = False

    def format(self, value: float) -> str:
        """The text of a table's cell; a value that rounds to zero has no sign."""
        return number(value, self.form)

    def rounded(self, value: float) -> float:
        """The value with the decimals worth storing; never minus zero."""
        return round(value, self.decimals) + 0.0

    def best(self, values: Iterable[float]) -> float:
        """The best of some values. Raises ValueError where there are none."""
        return min(values) if self.better == "lower" else max(values)


_ALL = (
    Metric("ppl", "ppl", "perplexity per token", "{:.3f}", 4, "lower", "perplexity per token",
           "perplexity per token: exp(sum of negative log-likelihoods / tokens), every token scored once",
           (REPORT, README, CARD, SWEEP, DIFF)),
    Metric("ppl_word", "ppl / word", "perplexity per word", "{:.3f}", 4, "lower", "perplexity per word",
           "perplexity per word: the same sum divided by words, each end of a line counted as one"),
    Metric("bits_per_byte", "bits / byte", "bits per byte of text", "{:.4f}", 5, "lower", "bits per byte of text",
           "the same sum in bits, divided by the bytes of the text: compares models with different tokenizers", (DIFF,)),
    Metric("ppl_change_pct", "ppl change %", "change of perplexity (%)", "{:+.3f}", 4, "lower",
           "change of perplexity from the base, %",
           "change of `ppl` from base, on the same tokens; `reports/quality` has its 95 % interval",
           (REPORT, README, CARD, SWEEP, DIFF)),
    Metric("kld_mnats", "KLD mnat", "KL divergence from base (mnat per token)", "{:.3f}", 4, "lower",
           "divergence from the base (KLD), thousandths of a nat",
           "mean Kullback-Leibler divergence from base's predictions, over the whole vocabulary, in thousandths of a nat",
           (REPORT, README, CARD, SWEEP, DIFF)),
    Metric("top1_agree_pct", "top-1 %", "same likeliest token as base (%)", "{:.1f}", 2, "higher",
           "same likeliest next token as the base, %", "share of tokens whose likeliest successor is the same as base's",
           (REPORT, README, CARD, DIFF)),
    Metric("bits_per_weight", "bits / weight", "bits per weight, scales included", "{:.2f}", 3, "lower",
           "bits per weight, as held in memory, scales included",
           "bits of all weights as held in memory, scales included, tied weights once, divided by the number of weights",
           (REPORT, README, CARD, SWEEP, DIFF)),
    Metric("weights_mib", "weights MiB", "weights in memory (MiB)", "{:.2f}", 3, "lower", "weights in memory, MiB",
           "the same weights in MiB", (REPORT, README, CARD, SWEEP, DIFF)),
    Metric("disk_mib", "disk MiB", "weights on disk (MiB)", "{:.2f}", 3, "lower", "weights on disk, MiB",
           "size of the weight files; base's are as downloaded, often 16 bits, and held in memory in 32", (REPORT, CARD)),
    Metric("peak_rss_mib", "peak MiB", "peak memory of the process (MiB)", "{:.0f}", 1, "lower",
           "peak memory of a process that generates, MiB",
           "peak memory of a fresh process that loads the variant and generates, above Python and its libraries", (CARD,),
           of_speed=True),
    Metric("load_s", "load s", "time to load (s)", "{:.2f}", 2, "lower", "seconds to load",
           "seconds to load the variant in that process; libraries are imported before", of_speed=True),
    Metric("prefill_ms", "prefill ms", "prefill (ms)", "{:.1f}", 2, "lower", "milliseconds for the first token after a prompt",
           "time to the first token after the first of `benchmark.prompts`, in milliseconds; median", of_speed=True),
    Metric("prefill_speedup", "prefill ×", "prefill speed (base = 1)", "{:.2f}", 2, "higher",
           "speed of the prompt, relative to the base",
           "base's prefill time over the variant's, measured alternately; above 1 is faster than base", of_speed=True),
    Metric("decode_ms_per_token", "decode ms", "decoding, per token (ms)", "{:.2f}", 3, "lower",
           "milliseconds per generated token", "time per token after the first, in milliseconds; median", (README, CARD),
           of_speed=True),
    Metric("decode_speedup", "decode ×", "decoding speed (base = 1)", "{:.2f}", 2, "higher",
           "speed of generating, relative to the base",
           "base's decode time over the variant's, measured alternately; above 1 is faster than base", (REPORT, README, CARD),
           of_speed=True),
)  # fmt: skip
METRICS = {metric.key: metric for metric in _ALL}


def shown_in(place: str) -> list[Metric]:
    """The metrics that a place shows, in the order of the table."""
    return [metric for metric in METRICS.values() if place in metric.shown]


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Metrics by key, with the decimals worth storing."""
    return {key: METRICS[key].rounded(value) for key, value in values.items()}


def better_corner(x: str, y: str) -> str:
    """The corner of a plot of two metrics where a variant is best: "Lower left", "Upper left"."""
    vertical = "Lower" if METRICS[y].better == "lower" else "Upper"
    return f"{vertical} {'left' if METRICS[x].better == 'lower' else 'right'}"
