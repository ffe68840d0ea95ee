"""Records a build of colbert-ai while it runs, in whatever process, and puts recorded artifacts in its way.

The methods that are wrapped are none that an adapter patches: a build is recorded with the plugins and without.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.host.watch import Watcher
from li_plugins.index_diff import capture, resumed
from li_plugins.index_diff.capture import Capture
from li_plugins.index_diff.environment import environment
from li_plugins.index_diff.folder import IndexFolder
from li_plugins.index_diff.hidden import watch_layers

INJECTABLE = ("sampled-passages", "sample", "rng", "centroids", "buckets", "embeddings")
"""The artifacts that a build can be given, in its order."""

INDEXER, LAUNCHER = "colbert.indexing.collection_indexer", "colbert.infra.launcher"
_MARK = "_li_plugins_recorded"


@dataclass(frozen=True)
class Recording:
    """What is to be done in a build.

    Parameters
    ----------
    texts
        Of how many texts hidden states are kept.
    injected
        Which artifacts come from which captured index, by their names in ``INJECTABLE``.
    """

    texts: int = 8
    injected: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ``BadInput`` unless every injected artifact can be read."""
        for name, index in self.injected.items():
            if name not in INJECTABLE:
                raise BadInput(f"inject one of {', '.join(INJECTABLE)}", repr(name), "write it as NAME=INDEX")
            _READ[name](Path(index))

    def given(self, name: str) -> Any:
        """Return what an injected artifact holds, or None."""
        return _READ[name](Path(self.injected[name])) if name in self.injected else None


@functools.cache
def _capture(index: Path) -> Capture:
    """Return a capture, which is compared with its index once and not for every chunk."""
    return Capture(index)


def _codec(index: Path) -> tuple[Tensor, Tensor, Tensor]:
    folder = IndexFolder(index)
    return (*folder.buckets, folder.average_residual[0])


_READ: Mapping[str, Callable[[Path], Any]] = {
    "sampled-passages": lambda index: _capture(index).sampled_passages,
    "sample": lambda index: _capture(index).sample,
    "rng": lambda index: _capture(index).rng,
    "centroids": lambda index: _capture(index).centroids,
    "buckets": _codec,
    "embeddings": _capture,
}

_WATCHER = Watcher()


def install(recording: Recording) -> None:
    """Record every index that this process builds from now on, and those that its children build."""
    _WATCHER.when_ready(INDEXER, functools.partial(_wrap_indexer, recording=recording))
    _WATCHER.when_ready(LAUNCHER, functools.partial(_wrap_launcher, recording=recording))


class Carried:
    """A callee of the library's launcher that brings the recording to the process in which it runs."""

    def __init__(self, callee: Callable[..., Any], recording: Recording) -> None:
        self._callee, self._recording = callee, recording

    def __call__(self, *arguments: Any) -> Any:
        """Install the recording, then call."""
        install(self._recording)
        return self._callee(*arguments)


def _wrap_launcher(module: ModuleType, recording: Recording) -> None:
    def begun(original: Any, self: Any, callee: Any, *arguments: Any, **options: Any) -> Any:
        return original(self, Carried(callee, recording), *arguments, **options)

    _wrap(module.Launcher, "__init__", begun)


def _wrap_indexer(module: ModuleType, recording: Recording) -> None:
    steps = _Steps(recording, module.distributed.barrier)
    for owner, names in (
        (module.CollectionIndexer, ("run", "_sample_pids", "_sample_embeddings", "_concatenate_and_split_sample",
                                    "_train_kmeans", "_compute_avg_residual", "finalize")),
        (module.IndexSaver, ("save_chunk",)),
    ):  # fmt: skip
        for name in names:
            _wrap(owner, name, getattr(steps, name.lstrip("_")))


def _wrap(owner: Any, name: str, step: Callable[..., Any]) -> None:
    """Replace a method by ``step``, which is given the method first; once."""
    original = getattr(owner, name, None)
    if original is None:
        raise BadInput(
            f"{owner.__name__}.{name} is part of colbert-ai", "nothing of this name", "install 0.2.21 or 0.2.22"
        )
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        return step(original, *arguments, **options)

    setattr(wrapper, _MARK, True)
    setattr(owner, name, wrapper)


class _Steps:
    """What is done around each method; the parameters are the method itself and what it is called with."""

    def __init__(self, recording: Recording, barrier: Callable[[int], object]) -> None:
        self._recording, self._barrier = recording, barrier

    def run(self, original: Any, indexer: Any, *arguments: Any) -> Any:
        if indexer.rank == 0:
            self._begin(indexer, _folder(indexer))
        self._barrier(indexer.rank)
        return original(indexer, *arguments)

    def _begin(self, indexer: Any, folder: Path) -> None:
        """Make the capture's folder; a build that is resumed goes on with its own, if it is there."""
        about = environment() | {"injected": dict(self._recording.injected)}
        about["attention"] = getattr(indexer.checkpoint.model.config, "_attn_implementation", None)
        if indexer.config.resume and resumed.is_trained(folder.parent):
            obstacle = resumed.obstacle(folder.parent, about)
            if not obstacle:
                return
            if self._recording.injected:
                raise BadInput(
                    f"{', '.join(self._recording.injected)} can be injected into the build of {folder.parent}",
                    f"a build that is resumed: {obstacle}",
                    "build it from its start",
                )
            _say(f"{folder.parent} is resumed and will have no capture: {obstacle}; for one build it from its start")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / capture.ENVIRONMENT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        watch_layers(indexer.checkpoint, self._recording.texts, folder / capture.LAYERS)

    def sample_pids(self, original: Any, indexer: Any) -> Any:
        found = original(indexer)
        given = self._recording.given("sampled-passages")
        if given is not None:
            found = set(given.tolist())
        if indexer.rank == 0:
            torch.save(torch.tensor(sorted(found)), _folder(indexer) / capture.PASSAGES)
        return found

    def sample_embeddings(self, original: Any, indexer: Any, *arguments: Any) -> Any:
        found = original(indexer, *arguments)
        name = capture.SAMPLE.format(indexer.rank)
        path = Path(indexer.config.index_path_) / name
        if "sample" in self._recording.injected:
            given = _capture(Path(self._recording.injected["sample"])).file(name)
            _like("sample", torch.load(path, weights_only=True), torch.load(given, weights_only=True))
            shutil.copyfile(given, path)
        shutil.copyfile(path, _folder(indexer) / name)
        return found

    def concatenate_and_split_sample(self, original: Any, indexer: Any) -> Any:
        given = self._recording.given("rng")
        if given is not None:
            set_rng(given)
        torch.save(rng(), _folder(indexer) / capture.RNG)
        return original(indexer)

    def train_kmeans(self, original: Any, indexer: Any, *arguments: Any) -> Any:
        found = original(indexer, *arguments)
        given = self._recording.given("centroids")
        if given is not None:
            found = _like("centroids", found, given)
        torch.save(found.cpu(), _folder(indexer) / capture.CENTROIDS)
        return found

    def compute_avg_residual(self, original: Any, indexer: Any, *arguments: Any) -> Any:
        found = original(indexer, *arguments)
        given = self._recording.given("buckets")
        if given is not None:
            found = tuple(_like("buckets", own, other) for own, other in zip(found, given, strict=True))
        return found

    def save_chunk(self, original: Any, saver: Any, chunk: int, offset: int, embs: Tensor, doclens: Any) -> Any:
        given = self._recording.given("embeddings")
        if given is not None:
            embs = _like("embeddings", embs, given.embeddings(chunk))
        folder = Path(saver.config.index_path_) / capture.FOLDER
        torch.save(embs.half().cpu(), folder / capture.EMBEDDINGS.format(chunk))
        return original(saver, chunk, offset, embs, doclens)

    def finalize(self, original: Any, indexer: Any) -> Any:
        found = original(indexer)
        if indexer.rank == 0:
            folder = _folder(indexer)
            lacking = capture.lacking(folder, range(indexer.num_chunks))
            if lacking:
                shutil.rmtree(folder)
                _say(f"{folder} is removed: {capture.named(lacking)} were not recorded")
            else:
                capture.write_manifest(folder)
        return found


def _folder(indexer: Any) -> Path:
    return Path(indexer.config.index_path_) / capture.FOLDER


def _say(text: str) -> None:
    print(f"index-diff capture: {text}", file=sys.stderr)


def _like(name: str, own: Tensor, given: Tensor) -> Tensor:
    """Return what is given, where and in which dtype the build has its own; refuse another shape."""
    if own.shape != given.shape:
        raise BadInput(
            f"injected {name} have the shape of the build's own, {list(own.shape)}",
            str(list(given.shape)),
            "inject from an index of the same passages and settings",
        )
    return given.to(own)


def rng() -> dict[str, Tensor]:
    """Return the random states of torch (CPU), numpy and Python."""
    import numpy

    _, key, place, *_ = numpy.random.get_state()
    _, words, _ = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*map(int, key), int(place)]),
        "python": torch.tensor(words),
    }


def set_rng(states: Mapping[str, Tensor]) -> None:
    """Set the random states that ``rng`` returned."""
    import numpy

    torch.set_rng_state(states["torch"].clone())
    *key, place = states["numpy"].tolist()
    numpy.random.set_state({"bit_generator": "MT19937", "state": {"key": key, "pos": place}})
    random.setstate((3, tuple(states["python"].tolist()), None))
