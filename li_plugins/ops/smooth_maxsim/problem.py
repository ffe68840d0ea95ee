"""One smooth MaxSim problem after validation: what every kernel receives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from li_plugins.ops.maxsim.problem import Problem


@dataclass(frozen=True, slots=True, eq=False)
class SmoothProblem(Problem):
    """A dense ``Problem`` without masks, weights and lengths, whose maximum is ``tau * logsumexp(similarity / tau)``.

    In the place of winners, the backward gets ``logsumexp(similarity / tau)`` over the document tokens, for each query
    token, in the dtype of accumulation and the shape of winners: ``[B, A, Lq]`` or ``[A, K, Lq]``.
    """

    tau: float = 0.1

    @property
    def winners_dtype(self) -> torch.dtype:
        """Dtype of the sums that the backward needs."""
        return torch.float64 if self.queries.dtype is torch.float64 else torch.float32
