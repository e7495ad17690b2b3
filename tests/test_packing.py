"""Packing loses nothing and wastes nothing, at every width."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.tensor.packing import pack, row_bytes, unpack


@given(bits=st.integers(2, 8), rows=st.integers(1, 5), columns=st.integers(1, 70), seed=st.integers(0, 1000))
def test_round_trip(bits, rows, columns, seed):
    codes = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, row_bytes(columns, bits)) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits, columns), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_row_is_one_little_endian_stream_of_bits(bits):
    codes = (torch.arange(11) * 37 % 2**bits).to(torch.uint8)
    stream = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    expected = stream.to_bytes((11 * bits + 7) // 8, "little")
    assert bytes(pack(codes.view(1, -1), bits)[0].tolist()) == expected
