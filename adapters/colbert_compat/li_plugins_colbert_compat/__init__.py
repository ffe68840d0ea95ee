"""Bugs of colbert-ai that stop its users, mended; as data, read by the host without importing colbert-ai."""

from __future__ import annotations

from li_plugins.api import Adapter, Target, hookimpl

_RELEASES = "0.2.21 - 0.2.22"
_UPDATER = "colbert.index_updater:IndexUpdater"


def _target(path: str, replacement: str, body: str, **helpers: str) -> Target:
    """Return a target whose replacement is in this package; ``helpers`` of its class or module with their bodies."""
    beside = path[: max(path.rfind(":"), path.rfind(".")) + 1]
    return Target(
        path,
        f"li_plugins_colbert_compat.{replacement}",
        bodies={_RELEASES: body},
        also={f"{beside}{name}": [known] for name, known in helpers.items()},
    )


@hookimpl
def li_plugins_adapters() -> list[Adapter]:
    """Offer what lets colbert-ai load, index, update and train where it fails by itself."""
    return [
        Adapter(
            "colbert-compat",
            requires="colbert-ai>=0.2.21,<0.2.23",
            summary="colbert-ai: nothing; bugs that stop users are mended",
            opt_in=True,
            targets=[
                _target("colbert.modeling.hf_colbert:class_factory", "loading:class_factory", "adb2232b"),
                # Any body: GitPython's own runs, and only its error is caught.
                Target("git.cmd:Git.refresh", "li_plugins_colbert_compat.provenance:refresh"),
                _target("utility.utils.save_metadata:get_metadata_only", "provenance:get_metadata_only", "f409c4d2"),
                Target(
                    "colbert.infra.launcher:Launcher.launch",
                    "li_plugins_colbert_compat.launching:launch",
                    bodies={_RELEASES: "ca7f63db"},
                    also={"colbert.infra.launcher:setup_new_process": ["a68b9772"]},
                ),
                _target(f"{_UPDATER}._load_disk_ivf", "updating:load_disk_ivf", "2f779119"),
                _target(
                    f"{_UPDATER}.persist_to_disk",
                    "updating:persist_to_disk",
                    "404453cb",
                    _write_to_last_chunk="f7a7c1a8",
                    _write_to_new_chunk="496defde",
                    _remove_passage_from_disk="af7f9f6f",
                ),
                _target(
                    "colbert.indexing.codecs.residual_embeddings:ResidualEmbeddings.load_chunks",
                    "mapping:load_chunks",
                    "cffda852",
                ),
                _target("colbert.data.examples:Examples.tolist", "sharding:tolist", "0202f1e7"),
            ],
        )
    ]
