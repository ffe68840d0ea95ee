"""Checkpoints load on transformers 5.

``colbert/modeling/hf_colbert.py``: the ``__init__`` of the model that ``class_factory`` makes ends with
``init_weights()``. transformers asks for ``post_init()``, and since 5.0 needs it: only there a model learns which of
its weights are tied, without which ``from_pretrained`` raises ``AttributeError: ... 'all_tied_weights_keys'``.
"""

from __future__ import annotations

from typing import Any


def class_factory(name_or_path: Any, *, original: Any = None) -> Any:
    """Return the class of model for a checkpoint, whose ``init_weights`` begins with what ``post_init`` has to add."""
    made = original(name_or_path)
    if hasattr(made, "get_expanded_tied_weights_keys"):
        made.init_weights = _init_weights(made.init_weights)
    return made


def _init_weights(own: Any) -> Any:
    def init_weights(self: Any) -> None:
        # as the library calls it; `post_init` calls it once more
        if "all_tied_weights_keys" in vars(self):
            own(self)
        else:
            self.post_init()

    return init_weights
