"""toycolbert's targets, as data."""

from li_plugins.api import Adapter, Target, hookimpl


@hookimpl
def li_plugins_adapters():
    """Return the adapter for toycolbert."""
    score = Target("toycolbert.scoring:score", "li_plugins_toycolbert.scoring:score", bodies={"1.2.0": "39b5d7dd"})
    return [Adapter("toycolbert", requires="toycolbert>=1.2,<2", targets=[score])]
