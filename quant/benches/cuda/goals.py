"""The goals of the products on a GPU, each a ratio of two times or sizes of one run, and the printed tables."""

from __future__ import annotations

PEERS = {"int8 row": ("bf16", "bnb int8"), "int4 g64": ("bf16", "bnb nf4", "tinygemm int4 g64")}


def goals(products: dict[str, dict], model: dict[str, dict]) -> list[dict]:
    """Every goal whose numbers there are: name, found, limit, and whether it is reached, for JSON.

    products: of a shape, of a name: `us` by rows. model: of a variant: decode_ms (compiled), peak_mib, and may_take_mib, the
    artifact's weights and one layer as floats.
    """
    found: list[dict] = []

    def add(name: str, ratio: float, limit: float) -> None:
        found.append({"goal": name, "found": ratio, "limit": limit, "passes": ratio <= limit})

    for shape, by_name in products.items():
        def us(name: str, rows: int, by_name: dict = by_name) -> float | None:
            return by_name.get(name, {}).get("us", {}).get(str(rows))

        for name, peers in PEERS.items():
            times = [us(peer, 1) for peer in peers if us(peer, 1)]
            if us(name, 1) and times:
                add(f"{shape}: 1 row of {name} over the best of {', '.join(peers)}", us(name, 1) / min(times), 1.1)
        for name in ("int3 g64", "int2 g64"):
            if us(name, 1) and us("int4 g64", 1):
                add(f"{shape}: 1 row of {name} over int4 g64", us(name, 1) / us("int4 g64", 1), 1.0)
        for name in by_name:
            if not name.startswith(("int", "nf4")):
                continue
            if us(name, 8) and us(name, 1):
                add(f"{shape}: 8 rows of {name} over 1 row", us(name, 8) / us(name, 1), 1.2)
            for rows in (512, 2048):
                if us(name, rows) and us("bf16", rows):
                    add(f"{shape}: {rows} rows of {name} over bf16", us(name, rows) / us("bf16", rows), 1.15)
    for name, limit in (("int8", 0.65), ("int4", 0.5)):
        if {name, "bf16"} <= set(model) and model[name]["is_compiled"] and model["bf16"]["is_compiled"]:
            add(f"compiled decoding, {name} over bf16", model[name]["decode_ms"] / model["bf16"]["decode_ms"], limit)
    for name, values in model.items():
        if "may_take_mib" in values:
            add(f"peak memory of {name} over weights and one layer", values["peak_mib"] / values["may_take_mib"], 1.0)
    return found


def goal_lines(found: list[dict]) -> list[str]:
    width = max((len(goal["goal"]) for goal in found), default=0)
    lines = [f"{goal['goal']:{width}} {goal['found']:7.2f}  <= {goal['limit']:.2f}  {'yes' if goal['passes'] else 'NO'}"
             for goal in found]
    return [*lines, f"{sum(goal['passes'] for goal in found)} of {len(found)} goals reached"]


def product_lines(shape: str, by_name: dict[str, dict]) -> list[str]:
    """Microseconds of a product, as a table of markdown."""
    rows = list(next(iter(by_name.values()))["us"])
    heads = ["product", *(f"{count} row{'s' if count != '1' else ''}" for count in rows), "from Python", "GB/s"]
    lines = [f"**{shape}** (out x in), us", "", "| " + " | ".join(heads) + " |", "|:--|" + "--:|" * (len(heads) - 1)]
    for name, values in by_name.items():
        numbers = [f"{values['us'][count]:.1f}" for count in rows] + [f"{values['python_us']:.0f}", f"{values['gb_per_s']:.0f}"]
        lines.append("| " + " | ".join([name, *numbers]) + " |")
    return [*lines, ""]


def model_lines(model: dict[str, dict]) -> list[str]:
    """Times and memory of whole models, as a table of markdown."""
    heads = ["", "prefill, ms", "decode, ms a token", "step by step", "peak MiB", "weights MiB"]
    lines = ["| " + " | ".join(heads) + " |", "|:--|" + "--:|" * (len(heads) - 1)]
    for name, values in model.items():
        decode = f"{values['decode_ms']:.2f}" if values["is_compiled"] else "not compiled"
        lines.append(f"| {name} | {values['prefill_ms']:.1f} | {decode} | {values['steps_ms']:.1f} | {values['peak_mib']:.0f} | "
                     f"{values['weights_mib']:.0f} |")
    return [*lines, ""]
