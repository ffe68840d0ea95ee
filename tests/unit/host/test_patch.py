"""A patched function is the same object with other behaviour, guarded on the way in and identical on the way out."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import pickle

import pytest
from patched_library import ours

from li_plugins.api import Decline
from li_plugins.errors import PatchRefused, RestoreRefused
from li_plugins.host import patch
from li_plugins.host.fingerprint import fingerprint


def one(self, x):
    return ("ours", x) if x else Decline("nothing")


def test_every_holder_sees_the_patch_and_the_undo(lib, user, patched):
    live = lib.Model()
    bound = lib.score

    def answers():
        found = [bound(1), user.by_value(1), user.by_default(1), user.table["score"](1), live.metric(1)]
        return {answer[0] for answer in found}, user.partial(1), lib.Model().metric(1)[0]

    assert answers() == ({"library"}, ("library", 1, 9, 1.0), "library")
    record = patched("lib.core:score", ours)
    assert answers() == ({"ours"}, ("ours", 1, 9, 1.0), "ours")
    patch.undo(record)
    assert answers() == ({"library"}, ("library", 1, 9, 1.0), "library")


def test_methods_of_live_instances_and_heirs(lib, patched):
    model, large, encode = lib.Model(), lib.Large(), lib.Model().encode
    patched("lib.core:Model.encode", one)
    patched("lib.core:Model.__call__", one)
    assert model.encode(1) == encode(1) == lib.Model.encode(model, 1) == ("ours", 1)
    assert large.encode(1) == ("large", ("ours", 1))
    assert large.encode(0) == ("large", ("library", 0))
    assert large(1) == model(1) == ("ours", 1)


def test_static_class_and_decorated_methods(lib, patched):
    patched("lib.core:Model.mask", lambda x: ("ours", x))
    patched("lib.core:Model.load", lambda cls, x: ("ours", cls.__name__, x))
    record = patched("lib.core:Model.decorated", one)
    assert lib.Model.mask(1) == lib.Large().mask(1) == ("ours", 1)
    assert lib.Large.load(1) == lib.Large().load(1) == ("ours", "Large", 1)
    assert lib.Model().decorated(1) == ("remembered", ("ours", 1))
    assert lib.Model().decorated(0) == ("remembered", ("library", 0))
    assert patch.record_of(lib.Model().decorated) is record


def looks(fn):
    names = ("name", "qualname", "module", "doc", "annotations", "defaults", "kwdefaults", "dict")
    return inspect.signature(fn), [getattr(fn, f"__{name}__") for name in names]


def test_the_function_stays_what_it_is(lib, patched):
    score, code, before = lib.score, lib.score.__code__, looks(lib.score)
    record = patched("lib.core:score", ours)
    assert lib.score is score
    assert score.__code__ is not code
    assert looks(score) == before
    patch.undo(record)
    assert score.__code__ is code
    assert looks(score) == before
    assert not [name for name in vars(lib) if name.startswith("__li_plugins")]


def test_pickle_copy_and_deepcopy(lib, user, patched):
    holder = {"fn": lib.score, "partial": user.partial, "model": lib.Model(), "bound": lib.Model().encode}
    patched("lib.core:score", ours)
    patched("lib.core:Model.encode", one)
    assert pickle.loads(pickle.dumps(lib.score)) is lib.score
    assert copy.deepcopy(lib.score) is copy.copy(lib.score) is lib.score
    for clone in (pickle.loads(pickle.dumps(holder)), copy.deepcopy(holder)):
        assert clone["fn"] is lib.score
        assert clone["partial"](1) == ("ours", 1, 9, 1.0)
        assert clone["model"].metric(1)[0] == "ours"
        assert clone["bound"](1) == ("ours", 1)


def test_defaults_stay_the_targets(lib, patched):
    """The replacement's own defaults never count: the function object keeps its own, also changed ones."""
    patched("lib.core:score", lambda queries, documents="wrong", *, scale="wrong": ("ours", queries, documents, scale))
    assert lib.score(1) == ("ours", 1, 2, 1.0)
    lib.score.__defaults__ = (5,)
    assert lib.score(1) == ("ours", 1, 5, 1.0)


def test_the_original_is_a_twin(lib, patched):
    record = patched("lib.core:score", ours)
    twin = record.original
    assert twin is patch.original(lib.score)
    assert twin is not lib.score
    assert twin(None, scale=3.0) == ("library", None, 2, 3.0)
    assert looks(twin) == looks(lib.score)
    assert inspect.getsource(twin).startswith("def score(")


def test_the_original_is_bound_as_the_function_is(lib, patched):
    patched("lib.core:Model.encode", one)
    patched("lib.core:Model.load", lambda cls, x: ("ours", x))
    model = lib.Model()
    assert patch.original(model.encode)(1) == ("library", 1)
    assert patch.original(lib.Model.encode)(model, 1) == ("library", 1)
    assert patch.original(lib.Large.load)(1) == ("library", "Large", 1)


def test_what_is_not_patched_is_its_own_original(lib):
    model = lib.Model()
    assert patch.original(lib.score) is lib.score
    assert patch.original(len) is len
    assert patch.original(functools.partial(lib.score)).func is lib.score
    assert patch.original(model.encode) == model.encode
    assert patch.record_of(lib.score) is None


def test_patching_twice_is_one_patch(lib, patched):
    record = patched("lib.core:score", ours)
    code = lib.score.__code__
    assert patched("lib.core:score", lambda queries, documents=2, *, scale=1.0: "another") is record
    assert lib.score.__code__ is code
    patch.undo(record)
    patch.undo(record)
    assert lib.score(1)[0] == "library"


def test_another_adapter_is_refused(lib, patched):
    patched("lib.core:score", ours)
    with pytest.raises(PatchRefused, match=r"adapter .fake. patched it already, as lib\.core:score"):
        patched("lib.core:score", ours, adapter="rival")


def test_a_record_tells_what_was_done(lib, patched):
    record = patched("lib.core:score", ours)
    assert (record.adapter, record.target.path, record.function) == ("fake", "lib.core:score", lib.score)
    assert record.fingerprint == fingerprint(record.original)
    assert patch.record_of(lib.score) is record
    patch.undo(record)
    assert patch.record_of(lib.score) is None
    assert record.original(1) == lib.score(1)


def test_the_counts_start_anew_with_each_patch(lib, patched):
    record = patched("lib.core:score", ours)
    lib.score(None)
    patch.undo(record)
    again = patched("lib.core:score", ours)
    lib.score(1)
    assert (record.counters.calls, record.counters.declines) == (1, {"no queries": 1})
    assert (again.counters.calls, again.counters.declines) == (1, {})


def test_the_next_patch_runs_its_own_replacement(lib, patched):
    patch.undo(patched("lib.core:score", ours))
    patched("lib.core:score", lambda queries, documents=2, *, scale=1.0: "another")
    assert lib.score(1) == "another"


def test_a_reloaded_module_is_patched_anew(lib, patched):
    old, record = lib.score, patched("lib.core:score", ours)
    importlib.reload(lib)
    assert lib.score(1)[0] == "library"
    again = patched("lib.core:score", ours)
    assert again is not record
    assert lib.score(1)[0] == old(1)[0] == "ours"
    patch.undo(record)
    assert (lib.score(1)[0], old(1)[0]) == ("ours", "library")
    patch.undo(again)
    assert lib.score(1)[0] == "library"


# The gates


def test_what_cannot_be_patched_is_refused_whatever_the_user_allows(lib, site, patched):
    site.module("rival", "def fast(queries, documents=2, *, scale=1.0): ...")
    lib.score = importlib.import_module("rival").fast
    with pytest.raises(PatchRefused, match="somebody patched it already"):
        patched("lib.core:score", ours, untested=True)
    assert lib.score(1) is None


def test_a_wrong_signature_is_refused_whatever_the_user_allows(lib, patched):
    code = lib.score.__code__
    with pytest.raises(PatchRefused, match="parameter 2 is 'documents', in the replacement 'docs'"):
        patched("lib.core:score", lambda queries, docs=2, *, scale=1.0: None, untested=True)
    assert lib.score.__code__ is code


def test_a_replacement_may_have_more_parameters(lib, patched):
    patched("lib.core:score", lambda queries, documents=2, *, scale=1.0, backend="auto": backend)
    assert lib.score(1) == "auto"


def test_a_known_body_is_patched(lib, patched):
    body = fingerprint(lib.score)
    assert patched("lib.core:score", ours, bodies={"1.4": "00000000", "1.5": body}).fingerprint == body


def test_an_unknown_body_is_refused_unless_the_user_allows_it(lib, patched):
    body, code = fingerprint(lib.score), lib.score.__code__
    bodies = {"1.2": "7f79c303", "1.3": "5579b6e3", "1.3.1": "5579b6e3"}
    with pytest.raises(PatchRefused) as refusal:
        patched("lib.core:score", ours, bodies=bodies)
    assert refusal.value.found == f"its body in 1.5 is {body}"
    assert refusal.value.known == "known: 7f79c303 (1.2), 5579b6e3 (1.3, 1.3.1)"
    assert "li-plugins fingerprint fake" in refusal.value.remedy
    assert "LI_PLUGINS_UNTESTED=1" in refusal.value.remedy
    assert lib.score.__code__ is code
    assert patched("lib.core:score", ours, bodies=bodies, untested=True).fingerprint == body


def test_helpers_are_gated_too(lib, patched):
    body = fingerprint(lib.helper)
    patch.undo(patched("lib.core:score", ours, also={"lib.core:helper": ["00000000", body]}))
    with pytest.raises(PatchRefused, match=f"the body of its helper lib.core:helper in 1.5 is {body}"):
        patched("lib.core:score", ours, also={"lib.core:helper": ["00000000"]})
    with pytest.raises(PatchRefused, match="is out of reach: there is no 'absent'"):
        patched("lib.core:score", ours, also={"lib.core:absent": ["00000000"]})
    patched("lib.core:score", ours, also={"lib.core:helper": ["00000000"]}, untested=True)


def test_a_patched_helper_counts_with_its_own_body(lib, patched):
    body = fingerprint(lib.helper)
    patched("lib.core:helper", lambda x: x)
    patched("lib.core:score", ours, also={"lib.core:helper": [body]})
    assert lib.score(1) == ("ours", 1, 2, 1.0)


def test_a_body_without_source_is_unknown(site, patched):
    site.module("lib", "exec(compile('def f(x): return x', __file__ + 'c', 'exec'))\nf.__code__ = f.__code__.replace("
                "co_filename=__file__, co_firstlineno=10_000)")  # fmt: skip
    lib = importlib.import_module("lib")
    with pytest.raises(PatchRefused, match=r"its body in 1\.5 cannot be read"):
        patched("lib:f", lambda x: ("ours", x), bodies={"1.5": "00000000"})
    assert patched("lib:f", lambda x: ("ours", x)).fingerprint == ""
    assert lib.f(1) == ("ours", 1)


# The undo


def test_the_undo_is_refused_when_somebody_patched_on_top(lib, site, patched):
    file = site.module("rival", "def fast(queries, documents=2, *, scale=1.0):\n    return 'rival'")
    theirs, record = lib.score.__code__, patched("lib.core:score", ours)
    mine = lib.score.__code__
    lib.score.__code__ = importlib.import_module("rival").fast.__code__
    with pytest.raises(RestoreRefused, match=f"fast in {file} patched it after li-plugins") as refusal:
        patch.undo(record)
    assert refusal.value.target == "lib.core:score"
    assert lib.score(1) == "rival"
    assert patch.record_of(lib.score) is record
    lib.score.__code__ = mine
    patch.undo(record)
    assert lib.score.__code__ is theirs


def test_somebody_who_rebinds_the_name_is_left_alone(lib, patched):
    function, record = lib.score, patched("lib.core:score", ours)
    lib.score = print
    patch.undo(record)
    assert lib.score is print
    assert function(1)[0] == "library"


# Around the library's own function.


def test_a_replacement_may_run_the_original_inside_itself(lib, patched):
    def around(queries, documents=2, *, scale=1.0, original=None):
        return ("around", original(queries, documents, scale=scale))

    record = patched("lib.core:score", around)
    assert lib.score(1, scale=3.0) == ("around", ("library", 1, 2, 3.0))
    assert record.counters.calls == 1
    assert record.counters.declines == {}
    patch.undo(record)
    assert lib.score(1) == ("library", 1, 2, 1.0)


def test_the_original_of_a_class_method_takes_the_class(lib, patched):
    patched("lib.core:Model.load", lambda cls, x, *, original=None: ("around", original(cls, x)))

    class Heir(lib.Model):
        pass

    assert Heir.load(1) == ("around", ("library", "Heir", 1))


def test_a_parameter_of_the_library_that_is_called_original_stays_its_own(site, patched):
    site.module("named", "def f(x, *, original=3):\n    return x, original")
    named = importlib.import_module("named")
    patched("named:f", lambda x, *, original=3: ("ours", x, original))
    assert named.f(1) == ("ours", 1, 3)
    assert named.f(1, original=5) == ("ours", 1, 5)
