"""Show which variants a model allows, and the memory and disk they need, before anything is downloaded or computed.

    python -m quant.check openai-community/gpt2              # a Hub id, of its main branch
    python -m quant.check openai-community/gpt2@<commit> ptb # at a commit, and a text as in data.source
    python -m quant.check path/to/model path/to/text.txt

Reads config.json, the tokenizer and the safetensors headers (from the Hub by range requests), but no weights. Shows for every
variant of params.yaml whether it can be made, or why not, and its size on disk and in memory.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from quant.command import Parser, run
from quant.pipeline import parameters


def describe(facts, found: list, text: str | None, memory: int) -> str:
    """The report: facts, a table of the variants' forecasts, and their needs. memory: available bytes; text: its description."""
    from quant.model.folder import TOKENIZERS
    from quant.progress import size

    inventory = facts.inventory
    names = ", ".join(inventory.config.get("architectures") or [])
    tied = "shares the embedding's weight" if inventory.is_tied else "has a weight of its own"
    lines = [
        ("model", facts.name),
        ("architecture", f"{inventory.config['model_type']} ({names}); {inventory.parameters:,} parameters; the head {tied}"),
        ("stored as", f"{inventory.dtype}, {size(inventory.stored_bytes)} in {facts.files} "
                      f"file{'s' if facts.files > 1 else ''}; quantized from that"),
        ("tokenizer", ", ".join(name for name in TOKENIZERS if (facts.folder / name).is_file())),
        ("licence", facts.license.label + (f"; to share a variant: {facts.license.warning}" if facts.license.warning else "")),
        *([("text", text)] if text else []),
    ]
    report = [f"{key:13} {value}" for key, value in lines]
    return "\n".join([*report, "", *_table(found), "", *_demands(facts, found, memory)])


def _table(found: list) -> list[str]:
    rows = [("variant", "method", "on disk", "in memory", "can it be made?")]
    for one in found:
        sizes = ("-", "-") if one.obstacle else (_size(one.sizes.file_bytes), _size(one.sizes.held_bytes))
        verdict = f"no: {one.obstacle}" if one.obstacle else f"yes; {one.sizes.note}" if one.sizes.note else "yes"
        rows.append((one.name, one.method.label if one.method else "-", *sizes, verdict))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [f"{name:{widths[0]}}  {method:{widths[1]}}  {disk:>{widths[2]}}  {memory:>{widths[3]}}  {verdict}"
            for name, method, disk, memory, verdict in rows]


def _size(count: float | None) -> str:
    from quant.progress import size

    return "-" if count is None else size(count)


def _demands(facts, found: list, have: int) -> list[str]:
    """Lines on each stage's memory, of the `have` bytes available, and on disk; a variant of unknown size counts as 0 bytes."""
    from quant.progress import size

    made = [one for one in found if not one.obstacle]
    base, *others = (one.sizes for one in made)
    methods = {one.method.name: one.method.label for one in made if one.sizes is not base}
    needs = [("download", 0, "no weights in memory")]
    for name, label in methods.items():
        memory = max(one.sizes.build_bytes for one in made if one.method.name == name)
        if memory:
            needs.append(("quantize", memory, f"{label}, at its largest variant"))
    needs.append(("evaluate", base.held_bytes + max((sizes.held_bytes or 0 for sizes in others), default=0),
                  "base in 32 bits, and the largest variant beside it"))
    prepared = sum(max(one.sizes.prepared_bytes for one in made if one.method.name == name) for name in methods)
    disk = facts.inventory.stored_bytes + prepared + sum(
        sizes.file_bytes or 0 for sizes in others if sizes.build_bytes)  # a variant that is not built opens the base's files
    free = shutil.disk_usage(Path()).free
    lines = [f"memory: {size(have)} available here; Python and its libraries take about 0.5 GB, and the weights of a stage"]
    for stage, count, why in needs:
        verdict = f"; can't run here: {size(count - have)} too little" if count > have else ""
        lines.append(f"  {stage:10} {size(count):>10}  ({why}){verdict}")
    fetched = f"{size(facts.to_fetch)} to fetch, " if facts.to_fetch else ""
    lines.append(f"disk: {fetched}{size(disk)} for models/, and the same again in DVC's cache if the file system can't share "
                 f"blocks; {size(free)} free{'' if 2 * disk + facts.to_fetch < free else ', which is too little'}")
    return lines


def describe_text(source) -> str:
    """One line about a text, without downloading it. Raises InputError if it can't be read."""
    from quant.hub.repository import resolve
    from quant.text.corpus import FEW_LINES
    from quant.text.read import count_lines
    from quant.text.source import KNOWN

    if source.source in KNOWN:
        return f"{source.source}: {KNOWN[source.source].about}"
    if source.dataset is not None:
        snapshot = resolve(source.dataset, source.revision, "dataset")
        return f"{source.source}: commit {snapshot.commit}, {len(snapshot.files)} files; streamed"
    lines = count_lines(source.source)
    few = f"; fewer than {FEW_LINES:,}: small differences between variants may be noise" if lines < FEW_LINES else ""
    return f"{source.source}: {lines:,} line{'s' if lines > 1 else ''}{few}"


def available_memory() -> int:
    """The kernel's estimate of the bytes that programs can allocate without swapping; all memory where it gives none."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.check", description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a folder, or a Hub id: owner/name[@commit]")
    parser.add_argument("text", nargs="?", help="a text, in the form of data.source")
    given = parser.parse_args(arguments)
    params = parameters()
    from quant.hub.source import ModelSource  # late imports, so that --help and a wrong argument answer at once
    from quant.text.source import TextSource

    is_folder = Path(given.model).is_dir()
    name, _, revision = (given.model, "", "") if is_folder else given.model.partition("@")
    model, text = ModelSource(name, revision or None), TextSource(given.text) if given.text else None
    model.require_valid()
    from quant.preflight.facts import facts_of
    from quant.preflight.forecast import forecasts

    text = describe_text(text) if text else None
    facts = facts_of(model)
    print(describe(facts, forecasts(facts.inventory, facts.folder, params), text, available_memory()))


if __name__ == "__main__":
    run(main)
