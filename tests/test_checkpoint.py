"""A file is checked before it is trusted, and what is wrong is said."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant.errors import InputError
from quant.model.checkpoint import Checkpoint
from quant.model.safetensors_file import TensorInfo, read_header, read_tensor, write_checkpoint


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(12.0).view(3, 4), "b": torch.tensor([1, 2], dtype=torch.uint8), "c": torch.empty(0, 4)}, path)
    return path


def with_header(path, change):
    """The file again, its header changed."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_reads_what_safetensors_wrote(file):
    for name, info in read_header(file).items():
        assert torch.equal(read_tensor(info), load_file(file)[name])


def test_safetensors_reads_what_we_wrote(tmp_path):
    tensors = {"x": torch.randn(5, 3).bfloat16(), "y": torch.arange(7), "z": torch.empty(0), "scalar": torch.tensor(2.0)}
    layout = {name: TensorInfo(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    write_checkpoint(tmp_path, layout, iter(tensors.items()))
    read = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(("change", "message"), [
    (lambda h: h["a"].update(shape=[3, 5]), "needs 60 bytes, offsets give 48"),
    (lambda h: h["a"].update(dtype="F13"), "dtype 'F13'"),
    (lambda h: h["a"].update(shape=[-3, -4]), "shape"),
    (lambda h: h["b"].update(data_offsets=[0, 2]), "starts at byte"),
    (lambda h: h["a"].pop("data_offsets"), "corrupt header"),
    (lambda h: h.pop("a") and None, "starts at byte|its header says"),
    (lambda _: ["a"], "corrupt header"),
])  # fmt: skip
def test_a_header_that_can_not_be_true_is_refused(file, change, message):
    with_header(file, change)
    with pytest.raises(InputError, match=message):
        read_header(file)


@pytest.mark.parametrize("size", [0, 5, 9, 100, -1])
def test_a_file_cut_off_is_refused(file, size):
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(InputError, match="fetch it again"):
        read_header(file)


def test_a_header_of_absurd_length_is_refused_before_it_is_read(file):
    file.write_bytes(struct.pack("<Q", 2**62) + file.read_bytes()[8:])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        read_header(file)


@pytest.mark.parametrize(("files", "message"), [
    ({}, "has no config.json"),
    ({"config.json": "{"}, "is not JSON"),
    ({"config.json": "{}"}, "names no model_type"),
    ({"config.json": '{"model_type": "gpt2"}'}, "has no model.safetensors"),
    ({"config.json": '{"model_type": "gpt2"}', "pytorch_model.bin": ""}, r"pickle weights only \(pytorch_model.bin\)"),
    ({"config.json": '{"model_type": "gpt2"}', "model.safetensors.index.json": '{"weight_map": {"a": "x.safetensors"}}'},
     "lacks x.safetensors"),
    ({"config.json": '{"model_type": "gpt2"}', "model.safetensors.index.json": '{"weight_map": {"a": "../x.safetensors"}}'},
     "expected safetensors files in its own folder"),
])  # fmt: skip
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        Checkpoint(tmp_path)
