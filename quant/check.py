"""Check params.yaml, and show which variants a model allows, and the memory and disk they need, before any work.

    python -m quant.check                                    # all of params.yaml, then its model and its text
    python -m quant.check openai-community/gpt2              # a Hub id, of its main branch
    python -m quant.check openai-community/gpt2@<commit> ptb # at a commit, and a text as in data.source
    python -m quant.check path/to/model path/to/text.txt

Every mistake in params.yaml is told in a line, before a model is looked at; `--schema` writes what is checked as a JSON schema,
for editors. Then reads config.json, the tokenizer and the safetensors headers (from the Hub by range requests), but no weights.
Shows for every variant of params.yaml whether it can be made, or why not, and its size on disk and in memory.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from quant.command import Parser, run
from quant.device import require_driver
from quant.errors import InputError
from quant.files import write_json
from quant.memory import available_memory
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


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.check", description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", help="a folder, or a Hub id: owner/name[@commit]; none = that of params.yaml")
    parser.add_argument("text", nargs="?", help="a text, in the form of data.source")
    parser.add_argument("--schema", action="store_true", help="write the JSON schema of params.yaml, and check nothing")
    given = parser.parse_args(arguments)
    params = {} if given.schema else parameters()
    from quant.preflight.sections import SCHEMA, problems, schema  # late, so that --help and a wrong argument answer at once

    if given.schema:
        write_json(Path(SCHEMA), schema())
        print(f"wrote {SCHEMA}")
        return
    *others, last = problems(params) or [""]
    for line in others:
        print(f"error: {line}", file=sys.stderr)
    if last:
        raise InputError(last)
    if params["device"] == "cuda" and not os.environ.get("RAY_ADDRESS"):  # on a cluster others may have one
        require_driver()
    model, source = _asked(given, params)
    model.require_valid()
    text = describe_text(source) if source else None
    from quant.preflight.facts import facts_of
    from quant.preflight.forecast import forecasts
    from quant.retry import outdated

    facts = facts_of(model)
    print(describe(facts, forecasts(facts.inventory, facts.folder, params), text, available_memory()))
    for name, _, refusal in outdated(params):
        print(f"{name} was left out, and what that depended on ({', '.join(refusal.here)}) has changed: python -m quant.retry")


def _asked(given, params: dict) -> tuple:
    """The model and the text to look at: those given, else those of params.yaml."""
    from quant.hub.source import ModelSource
    from quant.text.source import TextSource

    if not given.model:
        return ModelSource.from_dict(params["model"]), TextSource.from_dict(params["data"])
    is_folder = Path(given.model).is_dir()
    name, _, revision = (given.model, "", "") if is_folder else given.model.partition("@")
    return ModelSource(name, revision or None), TextSource(given.text) if given.text else None


if __name__ == "__main__":
    run(main)
