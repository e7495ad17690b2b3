"""The metrics: every table, figure, card, sweep and README reads here what a metric is called and how it is shown.

A new metric is computed in quant.quality.evaluate or quant.speed.benchmark, and has a row here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """key: in result files; heading: of a column; form: of a number in a table; decimals: worth storing; better: "lower",
    "higher" or ""; sentence: its meaning for a model card, short; meaning: for the README; card: whether a card shows it."""

    key: str
    heading: str
    form: str
    decimals: int
    better: str
    sentence: str
    meaning: str
    card: bool = False

    def format(self, value: float) -> str:
        """As a reader sees it; a value that rounds to zero has no sign."""
        text = self.form.format(value)
        return text.lstrip("+-") if float(text) == 0 else text

    def rounded(self, value: float) -> float:
        """With the decimals that are worth storing."""
        return round(value, self.decimals) + 0.0


_ALL = (
    Metric("ppl", "ppl", "{:.4f}", 4, "lower", "perplexity per token",
           "perplexity per token: exp(sum of negative log-likelihoods / tokens), every token scored once", card=True),
    Metric("ppl_word", "ppl / word", "{:.3f}", 4, "lower", "perplexity per word",
           "the same sum over words, the end of a line counted as one"),
    Metric("bits_per_byte", "bits / byte", "{:.4f}", 5, "lower", "bits per byte of text",
           "the same sum in bits over the bytes of the text: compares models with different tokenizers"),
    Metric("ppl_change_pct", "ppl change %", "{:+.3f}", 4, "lower", "change of perplexity from the base, %",
           "change of `ppl` from base, on the same tokens; its 95 % interval stands in `reports/quality`", card=True),
    Metric("kld_mnats", "KLD mnat", "{:.3f}", 4, "lower", "divergence from the base (KLD), thousandths of a nat",
           "mean Kullback-Leibler divergence from base's predictions, over the whole vocabulary, in thousandths of a nat",
           card=True),
    Metric("top1_agree_pct", "top-1 %", "{:.1f}", 2, "higher", "same likeliest next token as the base, %",
           "how often the likeliest next token is base's", card=True),
    Metric("bits_per_weight", "bits / weight", "{:.2f}", 3, "lower", "bits per weight, as held in memory, scales included",
           "bytes of all weights as held in memory, scales included, shared ones once; per weight of the model", card=True),
    Metric("weights_mib", "weights MiB", "{:.2f}", 3, "lower", "weights in memory, MiB",
           "the same bytes in MiB", card=True),
    Metric("disk_mib", "disk MiB", "{:.2f}", 3, "lower", "weights on disk, MiB",
           "the files of weights; those of base are as they were given, often 16 bits, and held in 32", card=True),
    Metric("peak_rss_mib", "peak MiB", "{:.0f}", 1, "lower", "peak memory of a process that generates, MiB",
           "peak memory of a fresh process that loads the variant and generates, above Python and its libraries", card=True),
    Metric("load_s", "load s", "{:.2f}", 2, "lower", "seconds to load",
           "seconds to load in that process, libraries imported before"),
    Metric("prefill_ms", "prefill ms", "{:.1f}", 2, "lower", "milliseconds for the first token after a prompt",
           "time of the first token after the first of `benchmark.prompts`, in milliseconds; median"),
    Metric("prefill_speedup", "prefill ×", "{:.2f}", 2, "higher", "speed of the prompt, relative to the base",
           "base's prefill time over the variant's, measured alternately; above 1 is faster than base"),
    Metric("decode_ms_per_token", "decode ms", "{:.2f}", 3, "lower", "milliseconds per generated token",
           "time of each token after the first, in milliseconds; median", card=True),
    Metric("decode_speedup", "decode ×", "{:.2f}", 2, "higher", "speed of generating, relative to the base",
           "base's decode time over the variant's, measured alternately; above 1 is faster than base", card=True),
)
METRICS = {metric.key: metric for metric in _ALL}
CARD_METRICS = tuple(metric for metric in _ALL if metric.card)


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Metrics by key, with the decimals that are worth storing."""
    return {key: METRICS[key].rounded(value) for key, value in values.items()}
