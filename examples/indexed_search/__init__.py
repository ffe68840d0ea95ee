"""The parts of the search demo: a checkpoint, an index built and searched in a process of its own, a comparison."""
