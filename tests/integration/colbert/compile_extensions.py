"""Compile colbert-ai's C++ extensions, for the tests that compare with them; they stay in TORCH_EXTENSIONS_DIR."""

from __future__ import annotations

import shutil

if __name__ == "__main__":
    if shutil.which("c++") is None:
        print("no C++ compiler: the tests that compare with the extensions will be skipped")
    else:
        from colbert.modeling.colbert import ColBERT
        from colbert.search.index_storage import IndexScorer
        from colbert.search.strided_tensor import StridedTensor

        for owner in (ColBERT, StridedTensor, IndexScorer):
            owner.try_load_torch_extensions(False)
