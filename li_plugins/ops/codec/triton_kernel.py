"""The residual codec on CUDA through Triton: which problems it serves, and the launches."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.codec.norms import LEAST_NORMS
from li_plugins.ops.codec.problem import BinarizeProblem, CompressProblem, DecompressProblem
from li_plugins.ops.codec.triton_pack import pack_buckets
from li_plugins.ops.codec.triton_unpack import unpack_rows
from li_plugins.ops.kmeans.problem import AssignProblem
from li_plugins.ops.kmeans.triton_kernel import ASSIGN
from li_plugins.ops.launch import Launcher, Options
from li_plugins.ops.maxsim.triton_arguments import INTERPRETED, plain, rounded, rows, stored
from li_plugins.ops.maxsim.triton_device import decoder_support, on, support
from li_plugins.ops.maxsim.tuning_sizes import power_of_two

WIDEST = 2**14
"""Most dimensions of a row that one program makes and normalises."""

ELEMENTS = 2**12
"""Elements that a program packs."""

UNPACKED = 2**11
"""Elements that a program unpacks at a time: few enough registers to fill a multiprocessor with programs."""

MOST_STEPS, PROGRAMS = 8, 2**12
"""How often a program does so, with one table of weights, as long as there are so many programs."""

WIDEST_STRIDE = 2**20
"""Most bytes from row to row of residuals, so that 32 bits hold what a program skips."""

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
    """Memory beyond inputs and outputs: none, but for residuals whose rows are more than ``WIDEST_STRIDE`` apart."""

    def supports(self, problem: DecompressProblem) -> Support:
        """Serve fp16, bf16 and fp32 of at most ``WIDEST`` dimensions, on devices as above."""
        width = problem.centroids.shape[1]
        if width > WIDEST:
            return Support(False, f"d = {width}: a program holds a row of at most {WIDEST}")
        return decoder_support(problem)

    def forward(self, problem: DecompressProblem) -> Tensor:
        """Return the embeddings."""
        centroids, residuals = rows(problem.centroids), rows(problem.residuals)
        dtype, (count, width), nbits = centroids.dtype, problem.scores_shape, problem.nbits
        embeddings = centroids.new_empty(problem.scores_shape, dtype=stored(dtype))
        if not embeddings.numel():
            return rounded(embeddings, dtype)
        if residuals.stride(0) > WIDEST_STRIDE:
            residuals = residuals.contiguous()
        block_d = power_of_two(width, 16)
        lines = max(1, UNPACKED // block_d)
        tiles = -(-count // lines)
        steps = max(1, min(MOST_STEPS, tiles // PROGRAMS))
        with on(centroids.device):
            _launch_unpack(
                (-(-tiles // steps), 1, 1),
                (plain(problem.codes), residuals, centroids, plain(problem.bucket_weights), embeddings),
                (),
                (residuals.stride(0), count, steps),
                (LEAST_NORMS[dtype],),
                (
                    centroids.stride(0),
                    width,
                    nbits,
                    lines,
                    block_d,
                    width % 8 == 0 and (residuals.data_ptr() | residuals.stride(0)) % nbits == 0,
                    problem.normalized,
                    _NAMES[dtype],
                    INTERPRETED,
                ),
                Options(8 if block_d > UNPACKED else 4, 1),
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
