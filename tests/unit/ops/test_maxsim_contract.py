"""Bad arguments are refused with what was asked, what was found and what to do; nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.ops import MaskRule, maxsim, maxsim_packed, supports_maxsim, supports_maxsim_packed


def floats(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


DENSE: dict[str, tuple[dict[str, Any], str]] = {
    "a list": ({"queries": [[1.0]]}, "takes tensors; found list for queries; convert"),
    "integers": ({"documents": floats(4, 5, 8).long()}, "float16, bfloat16, float32 or float64.*torch.int64 for doc"),
    "complex": ({"queries": floats(2, 3, 8, dtype=torch.complex64)}, "torch.complex64 for queries"),
    "float8": ({"queries": floats(2, 3, 8).to(torch.float8_e4m3fn)}, "torch.float8_e4m3fn for queries"),
    "sparse": ({"queries": floats(2, 3, 8).to_sparse()}, "strided.*sparse_coo for queries"),
    "mixed dtypes": ({"documents": floats(4, 5, 8).half()}, "one dtype; found torch.float32 and torch.float16"),
    "devices": ({"documents": floats(4, 5, 8, device="meta")}, "one device; found queries on cpu, documents on meta"),
    "2-D queries": ({"queries": floats(3, 8)}, r"\[A, Lq, d\].*found \[3, 8\]"),
    "5-D documents": ({"documents": floats(1, 2, 4, 5, 8)}, r"found \[2, 3, 8\] and \[1, 2, 4, 5, 8\]"),
    "widths": ({"documents": floats(4, 5, 9)}, "one width; found 8 and 9"),
    "candidates of others": ({"documents": floats(3, 4, 5, 8)}, "found 3 rows of documents for 2 queries"),
    "weights' shape": (
        {"query_weights": floats(2, 4)},
        r"query_weights has one entry per token, \[2, 3\]; found \[2, 4\]",
    ),
    "complex weights": ({"query_weights": floats(2, 3, dtype=torch.complex64)}, "real or bool"),
    "weights' device": ({"query_weights": floats(2, 3, device="meta")}, "on the queries' device, cpu; found meta"),
    "weights with a gradient": ({"query_weights": floats(2, 3).requires_grad_()}, "pass query_weights.detach"),
    "weights of a list": ({"query_weights": [[1.0]]}, "query_weights is a tensor; found list"),
    "mask's shape": (
        {"document_mask": floats(4), "mask_rule": MaskRule.ZERO},
        r"document_mask has one entry per token, \[4, 5\]; found \[4\]",
    ),
    "mask without a rule": ({"document_mask": floats(4, 5)}, "what a masked token means; found MaskRule.NONE"),
    "rule": ({"mask_rule": "ZERO"}, "mask_rule is a MaskRule.*found 'ZERO'"),
    "rule's name": ({"mask_rule": MaskRule("HALF")}, "mask_rule is a MaskRule"),
    "lengths' dtype": ({"document_lengths": integers(1, 2, 3, 4).int()}, r"found torch.int32; pass .*\.long"),
    "lengths' shape": ({"document_lengths": integers(1, 2)}, r"document_lengths is of shape \[4\]; found \[2\]"),
    "lengths' values": ({"document_lengths": integers(1, 2, 3, 6)}, r"lie in \[0, 6\); found 1 to 6"),
    "negative lengths": ({"document_lengths": integers(1, -2, 3, 5)}, "found -2 to 5"),
    "out_dtype": ({"out_dtype": torch.int32}, "out_dtype is float16.*found torch.int32"),
}


@pytest.mark.parametrize("case", DENSE)
def test_dense(case: str) -> None:
    changes, message = DENSE[case]
    arguments = {"queries": floats(2, 3, 8), "documents": floats(4, 5, 8), **changes}
    with pytest.raises(BadInput, match=message) as caught:
        maxsim(**arguments)
    assert caught.value.asked
    assert caught.value.remedy
    if "values" not in case and "negative" not in case:  # supports looks at metadata alone
        support = supports_maxsim(**arguments)
        assert not support
        assert support.reason == str(caught.value)


PACKED: dict[str, tuple[dict[str, Any], str]] = {
    "3-D": ({"queries": floats(1, 5, 8)}, r"\[Tq, d\].*found \[1, 5, 8\] and \[9, 8\]"),
    "widths": ({"queries": floats(5, 7)}, "one width; found 7 and 8"),
    "no offsets": ({"query_offsets": integers()}, "query_offsets holds.*found no entry; pass"),
    "offsets' dtype": ({"document_offsets": integers(0, 9).int()}, "int64 tensor; found torch.int32"),
    "offsets' rank": ({"document_offsets": integers(0, 9)[None]}, "one-dimensional"),
    "offsets of a list": ({"document_offsets": [0, 9]}, "document_offsets is a tensor; found list"),
    "offsets that start late": ({"query_offsets": integers(1, 5)}, "query_offsets rise from 0 .* 5; found 1 to 5"),
    "offsets that end early": ({"document_offsets": integers(0, 4, 8)}, "document tokens, 9; found 0 to 8"),
    "offsets that fall": ({"document_offsets": integers(0, 6, 4, 9)}, "found a descent"),
    "a length that is too small": ({"max_document_length": 3}, "bounds.*found 3, and a document of 5 tokens"),
    "a negative length": ({"max_query_length": -1}, "max_query_length is a number of tokens; found -1"),
    "one list of pairs": ({"pairs": integers(0, 1)}, "pairs is .*found Tensor"),
    "pairs' lengths": ({"pairs": (integers(0, 1), integers(0))}, r"pairs\[1\] is of shape \[2\]; found \[1\]"),
    "pairs' dtype": ({"pairs": (integers(0).int(), integers(0))}, r"pairs\[0\] is an int64 tensor"),
    "pairs' queries": ({"pairs": (integers(0, 2), integers(0, 1))}, r"pairs\[0\] lie in \[0, 2\); found 0 to 2"),
    "pairs' documents": ({"pairs": (integers(0, 1), integers(-1, 1))}, r"pairs\[1\] lie in \[0, 2\); found -1 to 1"),
    "floor's shape": ({"floor": torch.zeros(3, dtype=torch.bool)}, r"bool tensor \[2\], one per document"),
    "floor's dtype": ({"floor": floats(2)}, r"found torch.float32 \[2\]"),
    "floor of pairs": (
        {"floor": torch.zeros(2, dtype=torch.bool), "pairs": (integers(0), integers(0))},
        r"bool tensor \[1\], one per pair",
    ),
    "mask": ({"document_mask": floats(8), "mask_rule": MaskRule.ZERO}, r"one entry per token, \[9\]; found \[8\]"),
    "weights": ({"query_weights": floats(6)}, r"one entry per token, \[5\]; found \[6\]"),
}


@pytest.mark.parametrize("case", PACKED)
def test_packed(case: str) -> None:
    changes, message = PACKED[case]
    arguments = {
        "queries": floats(5, 8),
        "documents": floats(9, 8),
        "query_offsets": integers(0, 2, 5),
        "document_offsets": integers(0, 4, 9),
        **changes,
    }
    with pytest.raises(BadInput, match=message):
        maxsim_packed(**arguments)


def test_supports_names_the_kernel_and_runs_nothing() -> None:
    assert supports_maxsim(floats(2, 3, 8), floats(4, 5, 8)).reason == "blocked"
    packed = floats(5, 8), floats(9, 8), integers(0, 5), integers(0, 9)
    assert supports_maxsim_packed(*packed).reason == "blocked"
    refused = supports_maxsim_packed(floats(5, 7), *packed[1:])
    assert not refused
    assert "one width" in refused.reason
    elsewhere = supports_maxsim(floats(2, 3, 8, device="meta"), floats(4, 5, 8, device="meta"))
    assert not elsewhere
    assert "not on meta" in elsewhere.reason


def test_longer_maximal_lengths_than_needed_are_fine() -> None:
    packed = torch.randn(5, 8), torch.randn(9, 8), integers(0, 2, 5), integers(0, 4, 9)
    tight = maxsim_packed(*packed)
    torch.testing.assert_close(maxsim_packed(*packed, max_query_length=50, max_document_length=70), tight)
