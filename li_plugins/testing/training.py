"""A course of training, patched and unpatched: every step judged in float64, then the two courses side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

import li_plugins

AT_A_TIE = 2
"""Steps whose gradients need not be the library's: two tokens as similar as rounding can tell, and either may win."""

FLOOR = 2e-6
"""Error that is always granted, of the largest loss and of the gradients' norm: some twenty roundings."""


class Learner(NamedTuple):
    """A model in training; equal calls of what makes it give equal weights."""

    model: Module
    loss: Callable[[int], Tensor]
    """The loss of a step, by its number."""


class Courses(NamedTuple):
    """The models that were trained, patched and unpatched."""

    ours: Module
    library: Module


class _Step(NamedTuple):
    loss: float
    grads: Tensor


def assert_same_course(make: Callable[[bool], Learner], *, steps: int = 32, lr: float = 1e-3) -> Courses:
    """Train by AdamW, patched and unpatched, and compare.

    Each step of the patched course is made by three at the same parameters: patched, unpatched, and unpatched in
    float64. The largest errors of loss and gradients (their norm over all parameters) may be twice the library's, or
    ``FLOOR``. The courses themselves part by more than that without anybody's fault: AdamW makes whole steps of
    gradients that are zero but for rounding, and a tie between two tokens, broken the other way, shows in every step
    after it. They have to stay within a thousandth of the largest loss.

    Parameters
    ----------
    make
        Gives a learner; in float64 where called with ``True``.
    steps
        How many; also the number of losses compared.
    lr
        The learning rate.

    Raises
    ------
    AssertionError
        Naming the errors; also where the loss does not fall, since such a course tells nothing.
    """
    learner, precise = make(False), make(True)
    optimizer = torch.optim.AdamW(learner.model.parameters(), lr=lr)
    losses, off_losses, off_grads = [], [], []
    for number in range(steps):
        ours = _step(learner, number)
        with li_plugins.suspended():
            library = _step(learner, number, again=True)
            _copy(learner.model, precise.model)
            exact = _step(precise, number)
        losses.append(ours.loss)
        off_losses.append((abs(ours.loss - exact.loss), abs(library.loss - exact.loss)))
        off_grads.append((_distance(ours, exact), _distance(library, exact)))
        optimizer.step()
    size = max(map(abs, losses))
    _judge("loss", off_losses, FLOOR * size)
    _judge("gradient", off_grads, FLOOR, exempt=AT_A_TIE)
    with li_plugins.suspended():
        library_learner = make(False)
        theirs = _train(library_learner, steps, lr)
    assert sum(theirs[-4:]) < 0.9 * sum(theirs[:4]), "it does not learn, so that it tells nothing"
    apart = max(abs(mine - other) for mine, other in zip(losses, theirs, strict=True))
    assert apart <= 1e-3 * size, f"the courses part by {apart:.2g} at losses of up to {size:.2g}"
    return Courses(learner.model, library_learner.model)


def _judge(kind: str, errors: list[tuple[float, float]], floor: float, *, exempt: int = 0) -> None:
    """Compare the largest errors ``(ours, library's)`` of all steps, but for the ``exempt`` largest of each."""
    ours, library = (sorted(side)[-1 - exempt] for side in zip(*errors, strict=True))
    assert ours <= max(2 * library, floor), (
        f"{kind}: off by {ours:.2g}, the library by {library:.2g}, floor {floor:.2g}"
    )


def _train(learner: Learner, steps: int, lr: float) -> list[float]:
    optimizer = torch.optim.AdamW(learner.model.parameters(), lr=lr)
    losses = []
    for number in range(steps):
        losses.append(_step(learner, number).loss)
        optimizer.step()
    return losses


def _step(learner: Learner, number: int, *, again: bool = False) -> _Step:
    """Return loss and gradients; ``again`` leaves those of the step before in the parameters."""
    parameters = list(learner.model.parameters())
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(number)  # the same dropout for all
    loss = learner.loss(number)
    loss.backward()
    grads = torch.cat([_grad(parameter) for parameter in parameters])
    if again:
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad
    return _Step(loss.item(), grads)


def _grad(parameter: Tensor) -> Tensor:
    grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return grad.detach().double().flatten()


def _copy(source: Module, target: Module) -> None:
    with torch.no_grad():
        for theirs, mine in zip(source.parameters(), target.parameters(), strict=True):
            mine.copy_(theirs)


def _distance(step: _Step, exact: _Step) -> float:
    return ((step.grads - exact.grads).norm() / exact.grads.norm()).item()
