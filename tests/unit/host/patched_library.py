"""The library that the tests of patches patch, as text, and a replacement."""

from __future__ import annotations

from li_plugins.api import Decline

CORE = '''
import functools

def score(queries, documents=2, *, scale: float = 1.0):
    """Score."""
    return ("library", queries, documents, scale)

score.registry = {"kept": True}

def helper(x):
    return x + 1

def remember(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return ("remembered", fn(*args, **kwargs))
    return wrapper

class Model:
    def __init__(self, score=score):
        self.metric = score

    def encode(self, x):
        return ("library", x)

    @staticmethod
    def mask(x):
        return ("library", x)

    @classmethod
    def load(cls, x):
        return ("library", cls.__name__, x)

    @remember
    def decorated(self, x):
        return ("library", x)

    def __call__(self, x):
        return ("library", x)

class Large(Model):
    def encode(self, x):
        return ("large", super().encode(x))
'''

USER = """
import functools
from lib.core import Model, score

def by_value(x):
    return score(x)

def by_default(x, fn=score):
    return fn(x)

partial = functools.partial(score, documents=9)
table = {"score": score}
"""


def ours(queries, documents=2, *, scale=1.0):
    return ("ours", queries, documents, scale) if queries is not None else Decline("no queries")
