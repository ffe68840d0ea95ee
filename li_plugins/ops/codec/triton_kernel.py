"""The residual codec on CUDA through Triton: which problems it serves, and the launches."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.codec import bits
from li_plugins.ops.codec.norms import LEAST_NORMS
from li_plugins.ops.codec.problem import BinarizeProblem, CompressProblem, DecompressProblem
from li_plugins.ops.codec.triton_pack import pack_buckets
from li_plugins.ops.codec.triton_unpack import unpack_rows
from li_plugins.ops.kmeans.problem import AssignProblem
from li_plugins.ops.kmeans.triton_kernel import ASSIGN
from li_plugins.ops.launch import Launcher, Options
from li_plugins.ops.maxsim.triton_arguments import INTERPRETED, rounded, rows, stored
from li_plugins.ops.maxsim.triton_device import on, support
from li_plugins.ops.maxsim.tuning_sizes import power_of_two

WIDEST = 2**14
"""Most dimensions of a row that one program makes and normalises."""

ELEMENTS = 2**12
"""Elements that a program packs or unpacks."""

_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}

_launch_pack = Launcher(pack_buckets)
_launch_unpack = Launcher(unpack_rows)


class Binarize:
    """Memory beyond inputs and outputs: none."""

    def supports(self, problem: BinarizeProblem) -> Support:
        """Serve fp16, bf16 and fp32 on NVIDIA's devices of compute capability 8.0 and later."""
        return support(problem)

    def forward(self, problem: BinarizeProblem) -> Tensor:
        """Return the bytes."""
        residuals = problem.values.new_empty(problem.scores_shape, dtype=torch.uint8)
        with on(residuals.device):
            _pack(problem.values, None, None, problem.cutoffs, residuals, problem.nbits)
        return residuals


class Compress:
    """Memory beyond inputs and outputs: that of ``assign``, and the similarity of each row's centroid."""

    def supports(self, problem: CompressProblem) -> Support:
        """Serve fp16, bf16 and fp32 in any mixture, on NVIDIA's devices of compute capability 8.0 and later."""
        if problem.centroids.dtype is torch.float64:
            return Support(False, "centroids in float64: it computes in fp32")
        return support(problem)

    def forward(self, problem: CompressProblem) -> tuple[Tensor, Tensor]:
        """Return codes and residuals."""
        embeddings, centroids = problem.embeddings, problem.centroids
        codes, _ = ASSIGN.forward(AssignProblem(embeddings, centroids, by_distance=False))
        residuals = embeddings.new_empty(problem.scores_shape, dtype=torch.uint8)
        with on(residuals.device):
            _pack(embeddings, codes, centroids, problem.cutoffs, residuals, problem.nbits)
        return codes, residuals


class Decompress:
    """Memory beyond inputs and outputs: the weights of each byte."""

    def supports(self, problem: DecompressProblem) -> Support:
        """Serve fp16, bf16 and fp32 of at most ``WIDEST`` dimensions, on devices as above."""
        width = problem.centroids.shape[1]
        if width > WIDEST:
            return Support(False, f"d = {width}: a program holds a row of at most {WIDEST}")
        return support(problem)

    def forward(self, problem: DecompressProblem) -> Tensor:
        """Return the embeddings."""
        centroids, residuals = rows(problem.centroids), rows(problem.residuals)
        dtype, (count, width) = centroids.dtype, problem.scores_shape
        embeddings = centroids.new_empty(problem.scores_shape, dtype=stored(dtype))
        if not embeddings.numel():
            return rounded(embeddings, dtype)
        per_byte = 8 // problem.nbits
        octets = power_of_two(width // per_byte)
        lines = max(1, ELEMENTS // (octets * per_byte))
        with on(centroids.device):
            _launch_unpack(
                (-(-count // lines), 1, 1),
                (
                    problem.codes.contiguous(),
                    residuals,
                    centroids,
                    problem.bucket_weights[_buckets_of_bytes(problem.nbits, centroids.device)],
                    embeddings,
                ),
                (residuals.stride(0), centroids.stride(0)),
                (count,),
                (LEAST_NORMS[dtype],),
                (width, per_byte, lines, octets, problem.normalized, _NAMES[dtype], INTERPRETED),
                Options(8 if octets * per_byte > ELEMENTS else 4, 1),
            )
        return rounded(embeddings, dtype)


BINARIZE, COMPRESS, DECOMPRESS = Binarize(), Compress(), Decompress()


def _pack(
    values: Tensor, codes: Tensor | None, centroids: Tensor | None, cutoffs: Tensor, residuals: Tensor, nbits: int
) -> None:
    """Write the residuals of values, less the centroids that codes name, if any."""
    if not residuals.numel():
        return
    count, width = values.shape
    values, centroids = rows(values), None if centroids is None else rows(centroids)
    block_d = min(power_of_two(width, 16), 128)
    lines = ELEMENTS // block_d
    dtype = values.dtype if centroids is None else torch.promote_types(values.dtype, centroids.dtype)
    _launch_pack(
        (-(-count // lines), -(-width // block_d), 1),
        (values, codes, centroids, cutoffs.contiguous(), residuals),
        (values.stride(0), 0 if centroids is None else centroids.stride(0)),
        (count,),
        (),
        (width, nbits, lines, block_d, _NAMES[dtype], INTERPRETED),
        Options(4, 1),
    )


def _buckets_of_bytes(nbits: int, device: torch.device) -> Tensor:
    """Return which bucket each dimension of a byte has, ``[256, 8 // nbits]``."""
    # what a CUDA graph computes is its own: nothing is there before it is replayed
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return bits.buckets_of_bytes(nbits, device)
    return _known_buckets_of_bytes(nbits, device)


_known_buckets_of_bytes = lru_cache(bits.buckets_of_bytes)
