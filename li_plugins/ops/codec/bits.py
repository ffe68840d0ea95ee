"""The bit order of residual bytes, the same in colbert-ai, PyLate and fast-plaid.

A dimension's bucket takes ``nbits`` bits, and ``8 // nbits`` dimensions share a byte. The first dimension has the
highest bits of the byte, and within a dimension's bits the lowest bit of the bucket comes first:

    bucket(i) = reversed((byte[i // k] >> (8 - nbits * (i % k + 1))) & (2**nbits - 1)),  k = 8 // nbits
"""

from __future__ import annotations

import torch
from torch import Tensor


def reversed_buckets(nbits: int, device: torch.device) -> Tensor:
    """Return each number of ``nbits`` bits with its bits in reverse, ``[2**nbits]`` uint8."""
    numbers = torch.arange(2**nbits, device=device)
    bits = sum(((numbers >> place) & 1) << (nbits - 1 - place) for place in range(nbits))
    return torch.as_tensor(bits).to(torch.uint8)


def buckets_of_bytes(nbits: int, device: torch.device) -> Tensor:
    """Return the buckets of the dimensions that each byte holds, ``[256, 8 // nbits]`` int64."""
    shifts = torch.arange(8 - nbits, -1, -nbits, device=device)
    fields = (torch.arange(256, device=device)[:, None] >> shifts) & (2**nbits - 1)
    return reversed_buckets(nbits, device).long()[fields]


def pack(buckets: Tensor, nbits: int) -> Tensor:
    """Return the bytes of buckets ``[n, d]``, any integers: ``[n, d * nbits / 8]`` uint8."""
    per_byte = 8 // nbits
    fields = reversed_buckets(nbits, buckets.device).index_select(0, buckets.reshape(-1).int()).view(buckets.shape)
    packed = fields[:, ::per_byte] << (8 - nbits)
    for place in range(1, per_byte):
        packed |= fields[:, place::per_byte] << (8 - nbits * (place + 1))
    return packed.contiguous()


def unpack(residuals: Tensor, values_of_bytes: Tensor) -> Tensor:
    """Look up the values of bytes ``[n, bytes]`` uint8 in a table ``[256, 8 // nbits]``: ``[n, d]``."""
    values = values_of_bytes.index_select(0, residuals.reshape(-1).int())
    return values.view(residuals.shape[0], residuals.shape[1] * values_of_bytes.shape[1])
