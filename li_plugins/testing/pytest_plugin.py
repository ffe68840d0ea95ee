"""A pytest plugin that turns a silent fallback red."""
