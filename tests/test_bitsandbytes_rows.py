"""What bitsandbytes can't run on this processor is told before anything is made."""

import pytest

from quant.errors import InputError
from quant.methods import load
from quant.methods.bitsandbytes import spec
from quant.model.checkpoint import Checkpoint


@pytest.mark.parametrize(("repacks", "kind", "is_refused"), [(True, "nf4", True), (True, "int8", False), (False, "nf4", False)])
def test_rows_that_it_can_not_repack(make_model, tmp_path, monkeypatch, repacks, kind, is_refused):
    monkeypatch.setattr(spec, "repacks_here", lambda: repacks)
    folder, method = make_model("llama-odd"), load("bitsandbytes")
    values, inventory = method.resolve({}, {"type": kind}), Checkpoint(folder).inventory
    if not is_refused:
        method.sizes(inventory, folder, values)
        return
    for attempt in (lambda: method.sizes(inventory, folder, values),
                    lambda: method.build(folder, tmp_path, values, tmp_path / "out", print)):
        with pytest.raises(InputError, match=r"is a matrix \[36, .*\], and on this processor .* only where 32 divides the rows"):
            attempt()
    assert not list(tmp_path.iterdir())


def test_rows_that_it_can_repack(make_model, monkeypatch):
    monkeypatch.setattr(spec, "repacks_here", lambda: True)
    folder, method = make_model("llama"), load("bitsandbytes")
    method.sizes(Checkpoint(folder).inventory, folder, method.resolve({}, {"type": "fp4"}))
