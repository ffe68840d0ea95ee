"""The parts of the demo: a collection, a model, three stages measured with and without li-plugins, a report."""
