"""What the numbers say, as sentences: each is chosen by the data it states, never assumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quant.report.results import Result

NEAR = 1.0  # per cent of perplexity that counts as "hardly worse"
FOUR_BITS = 5.0  # at most so many true bits per weight of the whole model counts as small


def findings(results: Sequence[Result]) -> list[str]:
    """Sentences for the top of the report, most useful first."""
    by_name = {r.name: r for r in results}
    base = by_name["base"]
    others = [r for r in results if r.name != "base"]
    found = [_smallest_near(base, others), _fastest(others), _best_small(others)]
    found += [_nonlinear_against_linear(by_name), _ours_against_bnb(by_name), _selective(by_name), _runtimes(base, by_name)]
    return [sentence for sentence in found if sentence]


def _smallest_near(base: Result, others: Sequence[Result]) -> str:
    near = [r for r in others if r.metrics["ppl_change_pct"] <= NEAR]
    if not near:
        closest = min(others, key=_metric("ppl_change_pct"))
        return (f"**No variant stays within {NEAR:g} % of the base's perplexity.** The closest is `{closest.name}` at "
                f"{closest.metrics['ppl_change_pct']:+.3f} %.")
    smallest = min(near, key=_metric("weights_mib"))
    ratio = base.metrics["weights_mib"] / smallest.metrics["weights_mib"]
    return (f"**Smallest within {NEAR:g} % of the base's perplexity: `{smallest.name}`**, {smallest.metrics['weights_mib']:.2f} "
            f"MiB of weights ({ratio:.1f} times smaller than base), perplexity {smallest.metrics['ppl_change_pct']:+.3f} %.")


def _fastest(others: Sequence[Result]) -> str:
    fastest = max(others, key=_metric("decode_speedup"))
    speedup = fastest.metrics["decode_speedup"]
    if speedup <= 1:
        return f"**No variant decodes faster than base here.** The closest is `{fastest.name}` at {speedup:.2f} times its speed."
    return (f"**Fastest: `{fastest.name}`**, which decodes at {speedup:.2f} times the base's speed "
            f"({fastest.metrics['decode_ms_per_token']:.2f} ms per token).")


def _best_small(others: Sequence[Result]) -> str:
    small = [r for r in others if r.metrics["bits_per_weight"] <= FOUR_BITS]
    if not small:
        smallest = min(others, key=_metric("bits_per_weight"))
        return (f"**No variant takes {FOUR_BITS:g} bits per weight or less**, all tensors counted; the smallest is "
                f"`{smallest.name}` at {smallest.metrics['bits_per_weight']:.2f}.")
    best = min(small, key=_metric("kld_mnats"))
    return (f"**Closest to base at {FOUR_BITS:g} true bits per weight or less: `{best.name}`** "
            f"({best.metrics['bits_per_weight']:.2f} bits), divergence {best.metrics['kld_mnats']:.3f} mnat per token, "
            f"perplexity {best.metrics['ppl_change_pct']:+.3f} %.")


def _nonlinear_against_linear(by_name: dict[str, Result]) -> str:
    grids = [by_name[name] for name in ("int4", "nf4", "fp4") if name in by_name]
    if len(grids) < 2 or len({round(r.metrics["weights_mib"], 3) for r in grids}) > 1:
        return ""
    ordered = sorted(grids, key=_metric("kld_mnats"))
    listed = ", ".join(f"`{r.name}` {r.metrics['kld_mnats']:.3f}" for r in ordered)
    return (f"**Nonlinear against linear at equal size** ({ordered[0].metrics['weights_mib']:.2f} MiB each): divergence from "
            f"base in mnat per token, least first: {listed}. Their perplexities change by "
            + ", ".join(f"{r.metrics['ppl_change_pct']:+.3f} %" for r in ordered) + ".")


def _ours_against_bnb(by_name: dict[str, Result]) -> str:
    pairs = [(by_name[ours], by_name[theirs]) for ours, theirs in (("nf4", "bnb-nf4"), ("fp4", "bnb-fp4"))
             if ours in by_name and theirs in by_name]
    if not pairs:
        return ""
    parts = [f"`{a.name}` {a.metrics['ppl']:.4f} and `{b.name}` {b.metrics['ppl']:.4f}" for a, b in pairs]
    return "**Same format, two implementations**: perplexity of " + "; ".join(parts) + "."


def _selective(by_name: dict[str, Result]) -> str:
    rows = [by_name[name] for name in ("whole", "selective", "attention", "ffn") if name in by_name]
    if len(rows) < 2:
        return ""
    parts = [f"`{r.name}` {r.metrics['weights_mib']:.2f} MiB at {r.metrics['ppl_change_pct']:+.3f} %" for r in rows]
    return "**How much to quantize**: " + ", ".join(parts) + "."


def _runtimes(base: Result, by_name: dict[str, Result]) -> str:
    f16 = by_name.get("gguf-f16")
    if f16 is None:
        return ""
    change = abs(f16.metrics["ppl_change_pct"])
    agrees = "agree" if change <= 0.1 else "**do not agree**"
    return (f"**One scorer for two runtimes**: llama.cpp's 16-bit model and base {agrees}: perplexity {f16.metrics['ppl']:.4f} "
            f"and {base.metrics['ppl']:.4f}, {change:.3f} % apart.")


def _metric(key: str) -> Callable[[Result], float]:
    return lambda result: result.metrics[key]
