"""MaxSim: the sum over query tokens of the best similarity with a document."""
