"""What adapters and tests share: the oracle, the conformance suite and the pytest plugin."""
