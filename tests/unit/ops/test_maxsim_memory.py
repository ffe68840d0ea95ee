"""The memory of a call is bounded by inputs, outputs and some tiles; the grid would be hundreds of megabytes."""

from __future__ import annotations

import peaks
import pytest

LIMITS = {
    "the grid": ("torch.einsum('ash,bth->abst', queries, documents[part]).amax(-1).sum(-1)", (300, 1000)),
    "forward": ("maxsim(queries, documents[part])", (0, 30)),
    "masked": ("maxsim(queries, documents[part], document_mask=mask[part], mask_rule=MaskRule.ZERO)", (0, 30)),
    "half": ("maxsim(queries.bfloat16(), documents[part].bfloat16())", (0, 40)),
    # 45 MiB, which would be 90 in fp32
    "half, many": ("maxsim(queries[:4].bfloat16(), documents[part].bfloat16().repeat(8, 1, 1))", (0, 95)),
    "packed": (
        "maxsim_packed(queries.view(-1, 64), documents[part].reshape(-1, 64), torch.arange(65) * 32, "
        "torch.arange(len(documents[part]) + 1) * 180)",
        (0, 45),
    ),
    "candidates": (
        "maxsim(queries[: len(documents[part]) // 4], documents[part].view(-1, 4, 180, 64))",
        (0, 30),
    ),
    # with winners of 1 MiB
    "candidates of all": (
        "maxsim(queries.repeat(4, 1, 1)[: len(documents[part])].requires_grad_(), documents[part][:, None], "
        "document_mask=mask[part][:, None], mask_rule=MaskRule.EXCLUDE)",
        (0, 30),
    ),
    # with winners of 2 MiB and gradients of 12 MiB
    "training step": (
        "maxsim(queries.requires_grad_(), documents[part].detach().requires_grad_(), document_mask=mask[part], "
        "mask_rule=MaskRule.ZERO).square().sum().backward()",
        (0, 75),
    ),
    # the same with float32 sums in the place of winners
    "smooth step": (
        "smooth_maxsim(queries.requires_grad_(), documents[part].detach().requires_grad_(), tau=0.1).sum().backward()",
        (0, 75),
    ),
    "retrieved": (
        "xtr_maxsim(queries, documents[part], k=256, document_mask=mask[part], mask_rule=MaskRule.EXCLUDE)",
        (0, 45),
    ),
    "retrieved, half": ("xtr_maxsim(queries.bfloat16(), documents[part].bfloat16(), k=256)", (0, 65)),
    "retrieved step": (
        "xtr_maxsim(queries.requires_grad_(), documents[part].detach().requires_grad_(), k=256, "
        "xtr_rule=XtrRule.POSITIVE, document_mask=mask[part], mask_rule=MaskRule.FILL(-1e9)).square().sum().backward()",
        (0, 75),
    ),
    "retrieved of candidates": (
        "xtr_maxsim(queries[: len(documents[part]) // 4], documents[part].view(-1, 4, 180, 64), k=256)",
        (0, 45),
    ),
}
"""Steps, and between how many MiB their peak lies; the first shows that the measurement sees what it is for."""

SETUP = """
import torch
from li_plugins.ops import MaskRule, XtrRule, maxsim, maxsim_packed, smooth_maxsim, xtr_maxsim

queries, documents = torch.randn(64, 32, 64), torch.randn(256, 180, 64)  # 0.5 and 11 MiB; the grid has 360
mask = torch.arange(180) < torch.randint(60, 181, (256, 1))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return peaks.measured(SETUP, LIMITS)


@peaks.measurable
@pytest.mark.parametrize("name", LIMITS)
def test_peak(name: str, found: dict[str, float]) -> None:
    peaks.check(name, found, LIMITS)
