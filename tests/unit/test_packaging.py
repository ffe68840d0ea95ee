"""What the wheel declares about its own adapters."""

from importlib.metadata import distribution, requires

import pytest
from packaging.requirements import Requirement

OWN = list(distribution("li-plugins").entry_points.select(group="li_plugins"))


def offered_by(extra):
    """Return name and range of each requirement that an extra adds."""
    found = [Requirement(text) for text in requires("li-plugins")]
    return [
        (requirement.name, requirement.specifier)
        for requirement in found
        if requirement.marker and requirement.marker.evaluate({"extra": extra}) and "extra" in str(requirement.marker)
    ]


@pytest.mark.parametrize("plugin", OWN, ids=lambda plugin: plugin.name)
def test_the_extra_of_an_adapter_is_its_tested_range(plugin):
    adapters = plugin.load().li_plugins_adapters()
    assert adapters, "a plugin of ours that offers nothing"
    for adapter in adapters:
        tested = Requirement(adapter.requires)
        # an extra may also bound what the library forgot to
        assert (tested.name, tested.specifier) in offered_by(adapter.name.replace("_", "-"))


def test_every_adapter_of_ours_is_checked():
    assert {plugin.name for plugin in OWN} >= {"pylate"}
