"""Fused late-interaction kernels behind the libraries that you already use."""
