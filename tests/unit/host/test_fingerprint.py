"""Fingerprints ignore what does not run and see what does; signatures are compared parameter by parameter."""

from __future__ import annotations

import importlib
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from li_plugins.errors import BadInput
from li_plugins.host.fingerprint import fingerprint, parameters, signature_mismatch

ROOT = Path(__file__).parents[3]

MODULE = '''
import functools


def plain(queries, documents, *rest, mask=None, **options):
    """Score."""
    # a comment
    scores = [q * d for q, d in zip(queries, documents)]

    if mask is not None:
        scores = [  # another one
            s * m
            for s, m in zip(scores, mask)
        ]
    return f"{sum(scores)!r:>{10}} {{of}} {len(scores)}" if options else sum(scores)


class Holder:
    """Doc."""

    rate = 1_000

    @staticmethod
    @functools.lru_cache(maxsize=None)
    def static(x):
        text = """
   reaches further left
"""
        return x if x != text else rf"\\{x}" f"{'nested ' + f'{x}'}"
'''
GOLDEN = {"plain": "ae5c0da0", "Holder": "8e0fc1be", "Holder.static": "6258a00b"}


def module_of(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "fp_module"):
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return importlib.import_module(name)


@pytest.fixture
def body_of(tmp_path, monkeypatch):
    """The fingerprint of the function ``f`` of a source."""
    count = iter(range(100))

    def body_of(source: str) -> str:
        return fingerprint(module_of(source, tmp_path, monkeypatch, f"fp_{next(count)}").f)

    return body_of


PLAIN = """
def f(x):
    y = x + 1
    return y
"""


@pytest.mark.parametrize(
    "same",
    [
        '\ndef f(x):\n    """Doc."""\n    y = x + 1\n    return y\n',
        "\ndef f(x):\n    '''Doc\nof lines.'''\n\n    y = x + 1  # why\n    # what\n\n    return y\n",
        "\ndef f( x ):\n  y = x+1\n  return y\n",
        "\n\n\n\ndef f(x):\n\ty = x + \\\n 1\n\treturn y\n# trailing\n",
        "\ndef f(x):\n    'Doc.' \" of two parts\"\n    y = x + 1\n    'a string statement'\n    return y\n",
    ],
)
def test_comments_docstring_and_layout_do_not_count(body_of, same):
    assert body_of(same) == body_of(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace("x + 1", "x + 2"),
        PLAIN.replace("f(x)", "f(x=0)"),
        PLAIN.replace("    return y", "    if y:\n        return y"),
        PLAIN.replace("    y =", "    f'{x}'\n    y ="),
        PLAIN.replace("def f", "@staticmethod\ndef f"),
        PLAIN.replace("return y", "return 'y'"),
    ],
)
def test_what_runs_counts(body_of, other):
    assert body_of(other) != body_of(PLAIN)


def test_indentation_counts(body_of):
    inside = "\ndef f(x):\n    if x:\n        x = 1\n        x = 2\n    return x\n"
    assert body_of(inside) != body_of(inside.replace("        x = 2", "    x = 2"))


def test_blanks_inside_strings_count(body_of):
    assert body_of("def f():\n    return f'{1}  a'\n") != body_of("def f():\n    return f'{1} a'\n")


def test_the_recipe_is_frozen(tmp_path, monkeypatch):
    """Manifests hold fingerprints: a change of the recipe would refuse every patch."""
    module = module_of(MODULE, tmp_path, monkeypatch)
    found = {"plain": module.plain, "Holder": module.Holder, "Holder.static": module.Holder.static}
    assert {name: fingerprint(fn) for name, fn in found.items()} == GOLDEN


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_other_interpreters_agree(tmp_path, version):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    (tmp_path / "fp_module.py").write_text(MODULE)
    script = (
        "import fp_module as m; from li_plugins.host.fingerprint import fingerprint as f;"
        "print(f(m.plain), f(m.Holder), f(m.Holder.static))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    found = subprocess.run([python, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == list(GOLDEN.values())


def interpreter(version: str) -> str | None:
    """Return the path of a Python of this version: on the path, or one of pyenv's."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *(str(p) for p in versions.glob(f"{version}.*/bin/python"))]
    for candidate in filter(None, candidates):
        # A shim of pyenv is found on the path and then fails.
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def test_a_decorated_function_has_the_body_of_what_it_wraps(tmp_path, monkeypatch):
    module = module_of(MODULE, tmp_path, monkeypatch)
    assert fingerprint(module.Holder.static) == fingerprint(module.Holder.static.__wrapped__)


@pytest.mark.parametrize("fn", [math.sqrt, len, int])
def test_no_source_is_said_clearly(fn):
    with pytest.raises(BadInput, match=f"the fingerprint of {fn.__qualname__} needs its source"):
        fingerprint(fn)


def test_a_function_without_a_file_is_said_clearly():
    namespace = {}
    exec("def typed(): pass", namespace)
    with pytest.raises(BadInput, match="typed"):
        fingerprint(namespace["typed"])


def target(queries, /, documents, mask=None, *rest, backend, chunk=8, **options): ...


def same(queries, /, documents, mask=None, *rest, backend, chunk=8, **options): ...


def more(queries, /, documents, mask=0, *rest, chunk=9, backend, explain=False, **options): ...


@pytest.mark.parametrize("replacement", [target, same, more])
def test_agreeing_signatures(replacement):
    assert signature_mismatch(target, replacement) is None


def two(queries, documents=None): ...


@pytest.mark.parametrize(
    ("replacement", "says"),
    [
        (lambda queries: None, "parameter 'documents' is missing from the replacement"),
        (lambda queries, docs=None: None, "parameter 2 is 'documents', in the replacement 'docs'"),
        (lambda documents=None, queries=None: None, "parameter 1 is 'queries', in the replacement 'documents'"),
        (lambda queries, *, documents=None: None,
         "parameter 'documents' is positional or keyword, in the replacement keyword-only"),
        (lambda queries, documents: None, "parameter 'documents' has a default in the target only"),
        (lambda queries=1, documents=2: None, "parameter 'queries' has a default in the replacement only"),
        (lambda queries, documents=None, *, extra: None,
         "parameter 'extra', which only the replacement has, needs a default"),
        (lambda queries, *rest: None, "parameter 'documents' is missing from the replacement"),
        (lambda *arguments, **options: None, "parameter 'queries' is missing from the replacement"),
    ],
)  # fmt: skip
def test_the_mismatch_names_the_parameter_and_how(replacement, says):
    assert signature_mismatch(two, replacement) == says


def test_extra_parameters_with_defaults_are_welcome():
    assert signature_mismatch(two, lambda queries, documents=None, extra=1, *rest, also=2, **options: None) is None


def test_an_extra_positional_would_take_a_variadic_argument():
    def variadic(first, *rest): ...

    found = signature_mismatch(variadic, lambda first, extra=None, *rest: None)
    assert found == "parameter 'extra', which only the replacement has, would take one of the target's '*' arguments"


def test_missing_variadics_and_keywords_are_named():
    def keywords(*rest, backend, **options): ...

    assert "'rest'" in signature_mismatch(keywords, lambda *, backend, **options: None)
    assert "'backend'" in signature_mismatch(keywords, lambda *rest, **options: None)
    assert "'options'" in signature_mismatch(keywords, lambda *rest, backend: None)


def test_a_claimed_signature_is_not_believed():
    def claims(queries, documents=None): ...

    claims.__signature__ = None
    claims.__wrapped__ = len
    assert [parameter.name for parameter in parameters(claims)] == ["queries", "documents"]
    assert signature_mismatch(claims, two) is None


def test_defaults_of_keywords_are_seen():
    def keyword(*, mask=None): ...

    assert signature_mismatch(keyword, lambda *, mask: None) == "parameter 'mask' has a default in the target only"


def test_a_c_callable_without_a_signature_agrees_with_anything():
    silent = next(fn for fn in (getattr, max, vars, type) if parameters(fn) is None)
    assert signature_mismatch(silent, two) is None


def test_a_c_callable_with_a_signature_is_compared():
    assert signature_mismatch(math.sqrt, lambda x, /: None) is None
    assert signature_mismatch(math.sqrt, lambda y, /: None) == "parameter 1 is 'x', in the replacement 'y'"
