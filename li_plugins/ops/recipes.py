"""What the host did for one call, done again for the next one of its kind: memory and launches, and nothing else.

Between a call and its kernels lie checks, plans, blocks and some forty arguments of each launch, which takes longer
than a short kernel does. All of it follows from the dtypes, shapes and strides of the tensors and from the plain
arguments. So one of the first calls of a kind is recorded, and those after it follow the recipe.

A recipe knows memory that was made with ``empty``, ``zeros`` or ``full`` of this module, launches through ``Launcher``
and what was done ``in_place``. A call that asks torch for anything else while it is recorded, or that launches on a
tensor of unknown origin, has no recipe: its kind goes the long way every time. A launch by other means is not seen.
Small memory that is no result and is only launched on is made as one block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from li_plugins.ops import _compat

Results = TypeVar("Results", bound=tuple[Tensor | None, ...])

MOST = 4096
"""Kinds that are remembered; then an old one is forgotten."""

RECORDED = 8
"""Which call of a kind is recorded: to watch a call takes as long as some eight of them save, so that kinds that come
but a few times, as ragged ones do, are not slowed down, and no kind costs twice what it might have."""

PART = 1 << 21
"""Temporary memory of at most so many bytes is part of one block: to ask torch for memory takes as long as a launch."""

_APART = 512
"""Bytes from one part to the next are a multiple of this, as torch's allocator has it."""

_MAKE, _LAUNCH, _CHANGE, _SHARE = range(4)

_kinds: dict[tuple[Any, ...], Kind] = {}

_NOT_YET = "not called often enough"

_generation = 0
"""How often all was forgotten; a kind of an earlier generation, which a graph may hold, begins anew."""

_thread = threading.local()


class Kind:
    """Calls whose host work is the same: their recipe, once there is one, or why there is none."""

    __slots__ = ("_calls", "_generation", "_recipe", "kinds", "reason")

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._generation = _generation
        self._recipe: Recipe | None = None
        self._calls = 0
        self.reason = _NOT_YET
        self.kinds: dict[tuple[Any, ...], Kind] = {}
        """Kinds of calls that follow one of this kind, as its backward does."""

    @property
    def recipe(self) -> Recipe | None:
        """The recipe, if there is one that is not forgotten."""
        return self._recipe if self._generation == _generation else None

    def run(self, tensors: Sequence[Tensor | None], call: Callable[[], Results]) -> Results:
        """Return what ``call`` returns for ``tensors``: by the recipe, or by the call, which may be recorded."""
        if self._generation != _generation:
            self._begin()
        recipe = self._recipe
        if recipe is not None:
            return recipe.again(tensors) or call()
        if self.reason is not _NOT_YET:
            return call()
        self._calls += 1
        if self._calls < RECORDED:
            return call()
        with _Recorder(tensors) as recorder:
            results = call()
        found = recorder.recipe(results)
        self._recipe, self.reason = (None, found) if isinstance(found, str) else (found, "")
        return results


def kind(tensors: Sequence[Any], *plain: object, kinds: dict[tuple[Any, ...], Kind] | None = None) -> Kind | None:
    """Return the kind of a call on ``tensors``; ``None`` where somebody looks at ops, or on other devices.

    Arguments may be anything: what has no kind is for the long way to refuse. ``kinds``: those that a call follows.
    """
    first = tensors[0]
    if _compat.torch_is_compiling() or type(first) not in _compat.PLAIN or not _is_here(first.device):
        return None
    if _compat.forward_mode_is_active() or not _compat.nobody_looks_at_ops():
        return None
    kinds = _kinds if kinds is None else kinds
    try:
        key = _key(tensors, plain)
        found = None if key is None else kinds.get(key)
    except (TypeError, RuntimeError):  # something has no hash, or no strides
        return None
    if key is not None and found is None:
        if len(kinds) >= MOST:
            _forget_one(kinds)
        found = kinds[key] = Kind()
    return found


def _forget_one(kinds: dict[tuple[Any, ...], Kind]) -> None:
    """Forget an old kind, one without a recipe if possible: those of ragged calls come once each, without end."""
    try:
        for _ in range(8):
            key = next(iter(kinds))
            kind = kinds.pop(key)
            if kind.recipe is None:
                return
            kinds[key] = kind
        del kinds[next(iter(kinds))]
    except (RuntimeError, StopIteration, KeyError):  # another thread adds or forgets one
        return


def _key(tensors: Sequence[Any], plain: tuple[object, ...]) -> tuple[Any, ...] | None:
    """Return what host work follows from; ``None`` where a tensor is somebody's own, sparse, or elsewhere."""
    first = tensors[0]
    key: list[object] = [torch.is_grad_enabled(), *plain, first.device]
    is_fp32 = False
    for tensor in tensors:
        if tensor is None:
            key.append(None)
            continue
        if type(tensor) not in _compat.PLAIN or tensor.layout is not torch.strided:
            return None
        if tensor is not first and tensor.device != first.device:
            return None
        key += (tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad)
        is_fp32 = is_fp32 or tensor.dtype is torch.float32
    if is_fp32:
        key.append(torch.backends.cuda.matmul.allow_tf32)
    return tuple(key)


def run(kind: Kind | None, tensors: Sequence[Tensor | None], call: Callable[[], Results]) -> Results:
    """Return what ``call`` returns, by its kind's recipe if there is one."""
    return call() if kind is None else kind.run(tensors, call)


def forget() -> None:
    """Forget all recipes, one that is being recorded included: kernels, plans or blocks are others from now on."""
    global _generation
    _generation += 1
    _kinds.clear()


def generation() -> int:
    """Return how often all was forgotten, for who remembers launches elsewhere."""
    return _generation


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return new memory."""
    return _made(torch.empty, shape, {"dtype": dtype, "device": device})


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return new memory, all zero."""
    return _made(torch.zeros, shape, {"dtype": dtype, "device": device})


def full(shape: Sequence[int], value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return new memory that holds one value."""
    return _made(torch.full, shape, {"fill_value": value, "dtype": dtype, "device": device})


def in_place(change: Callable[..., Tensor], tensor: Tensor, *arguments: Any) -> None:
    """Call ``change(tensor, *arguments)``, which writes to memory that was made here."""
    recorder = _recorder()
    if recorder is None:
        change(tensor, *arguments)
    else:
        recorder.change(change, tensor, arguments)


def launched(runner: Callable[..., None] | None, tensors: Sequence[Tensor | None], numbers: tuple[Any, ...]) -> None:
    """Note a launch of ``runner(*addresses, *numbers)``; ``None``: one that cannot be done again so."""
    recorder = _recorder()
    if recorder is not None:
        recorder.launched(runner, tensors, numbers)


def counted(tally: list[int]) -> None:
    """Note a counter that each call of this kind counts up."""
    recorder = _recorder()
    if recorder is not None:
        recorder.tallies.append(tally)


class Recipe:
    """The steps of a call, between addresses: ``None``, those of its tensors, and those of memory that is made."""

    __slots__ = ("_device", "_results", "_shared", "_steps", "_tallies")

    def __init__(
        self,
        steps: tuple[tuple[Any, ...], ...],
        results: tuple[int | None, ...],
        tallies: tuple[list[int], ...],
        shared: int,
        device: torch.device | None,
    ) -> None:
        self._steps, self._results, self._tallies = steps, results, tallies
        self._shared, self._device = shared, device

    def again(self, tensors: Sequence[Tensor | None]) -> Any:
        """Return the results for tensors of the same key; ``None``, and nothing done, where they begin unevenly."""
        addresses: list[int | None] = [None]
        uneven = 0
        for tensor in tensors:
            if tensor is None:
                addresses.append(None)
            else:
                address = tensor.data_ptr()
                uneven |= address
                addresses.append(address)
        if uneven & 15:
            return None
        made: list[Any] = []
        block, begin = None, 0
        if self._shared:
            block = torch.empty(self._shared, dtype=torch.uint8, device=self._device)
            begin = block.data_ptr()
        for step, what, where, numbers in self._steps:
            if step == _LAUNCH:
                what(*[addresses[slot] for slot in where], *numbers)
            elif step == _MAKE:
                memory = what(where, **numbers)
                made.append(memory)
                addresses.append(memory.data_ptr())
            elif step == _SHARE:
                made.append(None)
                addresses.append(begin + where)
            else:
                what(made[where], *numbers)
        for tally in self._tallies:
            tally[0] += 1
        return tuple([None if place is None else made[place] for place in self._results])


class _Recorder(TorchDispatchMode):
    """Watches a call: what it makes, launches and changes, and whether torch is asked for anything else."""

    def __init__(self, inputs: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.tallies: list[list[int]] = []
        self._inputs = len(inputs)
        self._made: list[Tensor] = []
        """Alive until the end, so that no two have had one address."""
        self._slots: dict[int, int] = {}
        self._steps: list[tuple[Any, ...]] = []
        self._generation = _generation
        self._fault = ""
        self._is_expected = False
        for slot, tensor in enumerate(inputs, 1):
            if tensor is not None:
                self._known_at(tensor.data_ptr(), slot)

    def __enter__(self) -> _Recorder:
        super().__enter__()
        _thread.recorder = self
        return self

    def __exit__(self, *raised: Any) -> None:
        _thread.recorder = None
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._is_expected and not func.is_view:
            self.cannot(f"torch is asked for {func}")
        return func(*args, **(kwargs or {}))

    def make(self, what: Callable[..., Tensor], shape: tuple[int, ...], settings: dict[str, Any]) -> Tensor:
        memory = self._asked(what, shape, **settings)
        self._known_at(memory.data_ptr(), 1 + self._inputs + len(self._made))
        self._made.append(memory)
        self._steps.append((_MAKE, what, shape, settings))
        return memory

    def change(self, what: Callable[..., Tensor], tensor: Tensor, arguments: tuple[Any, ...]) -> None:
        self._asked(what, tensor, *arguments)
        place = self._place(tensor)
        if place is None:
            self.cannot("what is changed in place was not made here")
        if any(isinstance(argument, Tensor) for argument in arguments):
            self.cannot("what is made here is changed by a tensor")
        self._steps.append((_CHANGE, what, place, arguments))

    def launched(
        self, runner: Callable[..., None] | None, tensors: Sequence[Tensor | None], numbers: tuple[Any, ...]
    ) -> None:
        slots = [0 if tensor is None else self._slots.get(tensor.data_ptr(), -1) for tensor in tensors]
        if runner is None or -1 in slots:
            self.cannot("a launch goes through Triton" if runner is None else "a tensor of unknown origin is launched")
        self._steps.append((_LAUNCH, runner, slots, numbers))

    def cannot(self, why: str) -> None:
        """Give up, for the first reason that is named."""
        self._fault = self._fault or why

    def recipe(self, results: tuple[Tensor | None, ...]) -> Recipe | str:
        """Return the recipe, or why there is none."""
        places = [None if result is None else self._place(result) for result in results]
        if any(place is None and result is not None for place, result in zip(places, results, strict=True)):
            self.cannot("a result was not made here")
        launched = {slot for step, _, slots, _ in self._steps if step == _LAUNCH for slot in slots}
        if any(place is not None and 1 + self._inputs + place not in launched for place in places):
            self.cannot("a result is written by something else than a launch")
        if self._generation != _generation:
            self.cannot("kernels changed while it was recorded")
        if self._fault:
            return self._fault
        steps, shared = self._with_shared({place for place in places if place is not None})
        device = self._made[0].device if self._made else None
        return Recipe(tuple(steps), tuple(places), tuple(self.tallies), shared, device)

    def _with_shared(self, kept: set[int]) -> tuple[list[tuple[Any, ...]], int]:
        """Return the steps with small temporary memory as parts of one block, and the bytes of the block."""
        kept = kept | {where for step, _, where, _ in self._steps if step == _CHANGE}
        steps, shared, place = [], 0, -1
        for step in self._steps:
            if step[0] == _MAKE:
                place += 1
                size = self._made[place].nbytes
                if step[1] is torch.empty and place not in kept and size <= PART:
                    step = (_SHARE, None, shared, None)
                    shared += -(-size // _APART) * _APART
            steps.append(step)
        return steps, shared

    def _asked(self, what: Callable[..., Tensor], *arguments: Any, **settings: Any) -> Tensor:
        self._is_expected = True
        try:
            return what(*arguments, **settings)
        finally:
            self._is_expected = False

    def _known_at(self, address: int, slot: int) -> None:
        if self._slots.setdefault(address, slot) != slot and address:
            self.cannot("two tensors begin at one address")
        if not address:
            self._slots[address] = -1  # nobody's: what is empty has no address

    def _place(self, tensor: Tensor) -> int | None:
        return next((place for place, made in enumerate(self._made) if made is tensor), None)


def _made(what: Callable[..., Tensor], shape: Sequence[int], settings: dict[str, Any]) -> Tensor:
    recorder = _recorder()
    if recorder is None:
        return what(shape, **settings)
    return recorder.make(what, tuple(shape), settings)


def _recorder() -> _Recorder | None:
    return getattr(_thread, "recorder", None)


def _is_here(device: torch.device) -> bool:
    """Tell whether kernels are launched on ``device`` as it is: Triton launches on the current one."""
    return device.type == "cuda" and device.index == torch.cuda.current_device()
