"""The sums of clusters in Triton, from rows in the order of their clusters: the same sums on every run.

``sum_parts`` reads each row once (``s * N * d`` bytes, gathered in whole rows) and writes ``4 * K * d``. A cluster's
rows are added in parts of ``PART`` of them, one program each, so that one large cluster does not keep the others
waiting; ``add_parts`` adds what is beyond the first part of a cluster, in order. No atomics: the order of every
addition follows from the codes alone.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("cluster_count",))
def sum_parts(
    rows,  # [N, d]
    order,  # [N] int64: the rows by cluster
    starts,  # [K + 1] int64: where clusters begin in order
    owners,  # [parts] int64: whose part beyond the first this is; K for nobody's
    first_parts,  # [K + 1] int64: where a cluster's parts begin
    sums,  # [K, d] float32
    parts,  # [parts, d] float32
    row_stride,
    cluster_count,
    DIM: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PART: tl.constexpr,
    IS_FIRST: tl.constexpr,
):
    """Write the sum of a cluster's first ``PART`` rows, or of a later part; ``IS_FIRST``: there are no sums yet."""
    program = tl.program_id(0)
    dim = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_dim = dim < DIM
    cluster = tl.cast(program, tl.int64)
    skipped = tl.cast(0, tl.int64)
    target = sums + cluster * DIM
    if program >= cluster_count:
        part = tl.cast(program - cluster_count, tl.int64)
        cluster = tl.load(owners + part)
        target = parts + part * DIM
        if cluster < cluster_count:
            skipped = part - tl.load(first_parts + cluster) + 1
    if cluster < cluster_count:
        begin = tl.load(starts + cluster) + skipped * PART
        end = tl.minimum(tl.load(starts + cluster + 1), begin + PART)
        added = tl.zeros([LINES, BLOCK_D], tl.float32)
        for step in range(0, tl.cdiv(tl.maximum(end - begin, 0), LINES).to(tl.int32)):
            place = begin + step * LINES + tl.arange(0, LINES)
            row = tl.load(order + place, mask=place < end, other=0)
            tile = tl.load(
                rows + row[:, None] * row_stride + dim[None, :],
                mask=(place < end)[:, None] & is_dim[None, :],
                other=0.0,
            )
            added += tile.to(tl.float32)
        total = tl.sum(added, axis=0)
        if not IS_FIRST and program < cluster_count:
            total += tl.load(target + dim, mask=is_dim, other=0.0)
        tl.store(target + dim, total, mask=is_dim)


@triton.jit
def add_parts(
    first_parts,  # [K + 1] int64
    sums,  # [K, d] float32
    parts,  # [parts, d] float32
    DIM: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add its later parts to a cluster's sum."""
    cluster = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(first_parts + cluster), tl.load(first_parts + cluster + 1)
    if begin < end:
        dim = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        is_dim = dim < DIM
        added = tl.zeros([LINES, BLOCK_D], tl.float32)
        for step in range(0, tl.cdiv(end - begin, LINES).to(tl.int32)):
            part = begin + step * LINES + tl.arange(0, LINES)
            mask = (part < end)[:, None] & is_dim[None, :]
            added += tl.load(parts + part[:, None] * DIM + dim[None, :], mask=mask, other=0.0)
        target = sums + cluster * DIM + dim
        total = tl.load(target, mask=is_dim, other=0.0) + tl.sum(added, axis=0)
        tl.store(target, total, mask=is_dim)
