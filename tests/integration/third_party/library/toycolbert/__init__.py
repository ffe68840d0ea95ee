"""A late-interaction library that knows nothing of li-plugins; stands for the libraries of strangers."""
