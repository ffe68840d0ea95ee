"""A course of training that errs is told from one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import li_plugins
from li_plugins.testing.training import AT_A_TIE, Learner, assert_same_course

INPUTS = torch.linspace(-1, 1, 24).reshape(6, 4)
TARGETS = torch.linspace(1, -1, 6)


class Patch:
    """What is wrong with a patched step, as a factor of the loss and as one of its gradient alone."""

    def __init__(self) -> None:
        self.active = True
        self.loss = 1.0
        self.gradient = 1.0
        self.steps = range(1000)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def make(self, precise: bool) -> Learner:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        dtype = torch.float64 if precise else torch.float32
        model.to(dtype)

        def loss_of(step: int) -> Tensor:
            value = (model(INPUTS.to(dtype))[:, 0] - TARGETS.to(dtype)).square().mean()
            if not self.active or step not in self.steps:
                return value
            return self.loss * value + (self.gradient - 1) * (value - value.detach())

        return Learner(model, loss_of)


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> Patch:
    patch = Patch()
    monkeypatch.setattr(li_plugins, "suspended", patch.suspended)
    return patch


def test_the_same_course_passes_and_both_models_are_trained(patch: Patch) -> None:
    courses = assert_same_course(patch.make, steps=8, lr=0.1)
    start = patch.make(False).model.weight
    assert not torch.equal(courses.ours.weight, start)
    assert torch.equal(courses.ours.weight, courses.library.weight)


def test_a_loss_that_is_off_is_found(patch: Patch) -> None:
    patch.loss, patch.gradient = 1 + 1e-5, 1 - 1e-5
    with pytest.raises(AssertionError, match=r"loss: off by .*, the library by"):
        assert_same_course(patch.make, steps=8, lr=0.1)


def test_a_gradient_that_is_off_is_found(patch: Patch) -> None:
    patch.gradient = 1 + 1e-5
    with pytest.raises(AssertionError, match=r"gradient: off by .*, the library by"):
        assert_same_course(patch.make, steps=8, lr=0.1)


def test_a_few_steps_may_be_at_a_tie(patch: Patch) -> None:
    patch.gradient, patch.steps = 1 + 1e-5, range(AT_A_TIE)
    assert_same_course(patch.make, steps=8, lr=0.1)
    patch.steps = range(AT_A_TIE + 1)
    with pytest.raises(AssertionError, match="gradient: off by"):
        assert_same_course(patch.make, steps=8, lr=0.1)


def test_courses_that_part_are_found(patch: Patch) -> None:
    patch.gradient, patch.steps = -1, range(AT_A_TIE)
    with pytest.raises(AssertionError, match="the courses part by"):
        assert_same_course(patch.make, steps=8, lr=0.1)


def test_a_course_that_does_not_learn_tells_nothing(patch: Patch) -> None:
    with pytest.raises(AssertionError, match="does not learn"):
        assert_same_course(patch.make, steps=8, lr=1e-6)
