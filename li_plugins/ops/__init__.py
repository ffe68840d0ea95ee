"""Operations of late interaction, each with a reference and several kernels behind one torch op.

``li_plugins.ops.maxsim`` is the function. The package of the same name is reached by
``from li_plugins.ops.maxsim.problem import Problem`` and ``importlib.import_module``; only
``import li_plugins.ops.maxsim.problem as name`` meets the function instead.
"""

from li_plugins.ops.codec import (
    binarize,
    compress,
    decompress,
    explain_binarize,
    explain_compress,
    explain_decompress,
)
from li_plugins.ops.kmeans import assign, cluster_sums, explain_assign, kmeans
from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim import (
    explain_maxsim,
    explain_maxsim_packed,
    maxsim,
    maxsim_packed,
    supports_maxsim,
    supports_maxsim_packed,
)
from li_plugins.ops.maxsim.cosine import cosine_maxsim
from li_plugins.ops.near import explain_near_documents, near_documents
from li_plugins.ops.residual import code_maxsim, explain_code_maxsim, explain_residual_maxsim, residual_maxsim
from li_plugins.ops.smooth_maxsim import explain_smooth_maxsim, smooth_maxsim, supports_smooth_maxsim
from li_plugins.ops.xtr_maxsim import XtrRule, explain_xtr_maxsim, supports_xtr_maxsim, xtr_maxsim

__all__ = [
    "MaskRule",
    "XtrRule",
    "assign",
    "binarize",
    "cluster_sums",
    "code_maxsim",
    "compress",
    "cosine_maxsim",
    "decompress",
    "explain_assign",
    "explain_binarize",
    "explain_code_maxsim",
    "explain_compress",
    "explain_decompress",
    "explain_maxsim",
    "explain_maxsim_packed",
    "explain_near_documents",
    "explain_residual_maxsim",
    "explain_smooth_maxsim",
    "explain_xtr_maxsim",
    "kmeans",
    "maxsim",
    "maxsim_packed",
    "near_documents",
    "residual_maxsim",
    "smooth_maxsim",
    "supports_maxsim",
    "supports_maxsim_packed",
    "supports_smooth_maxsim",
    "supports_xtr_maxsim",
    "xtr_maxsim",
]
