"""The command line, each command in a process of its own."""

from __future__ import annotations

import json
import sys

import pytest


def run(site, *arguments: str, **environment: str):
    return site.run("-m", "li_plugins", *arguments, **environment)


def fail_if_imported(site):
    """Replace the fake library's code by something that cannot be imported unnoticed, with the known bodies."""
    file = site.path / "fakelib" / "scores.py"
    file.write_text("raise RuntimeError('imported')\n" + file.read_text())


def test_help_is_quick_and_names_every_command(site):
    code = """
    import sys, click.testing
    from li_plugins.__main__ import cli
    text = click.testing.CliRunner().invoke(cli, ["--help"]).output
    assert not {"torch", "rich", "pluggy"} & set(sys.modules), sys.modules.keys()
    print(text)
    """
    done = site.python(code)
    assert done.returncode == 0, done.stderr
    for command in ("status", "doctor", "run", "explain", "tune", "fingerprint", "index-diff"):
        assert f"  {command}" in done.stdout


def test_version(site):
    from importlib.metadata import version

    assert run(site, "--version").stdout.strip() == f"li-plugins {version('li-plugins')}"


def test_status_shows_what_this_environment_would_patch_and_imports_nothing(site):
    site.adapter()
    fail_if_imported(site)
    for environment, state in (({}, "off"), ({"LI_PLUGINS": "fake"}, "armed"), ({"LI_PLUGINS": "0"}, "off")):
        done = run(site, "status", "--json", **environment)
        assert done.returncode == 0, done.stderr
        rows = [row for row in json.loads(done.stdout)["rows"] if row["adapter"] == "fake"]
        assert [row["state"] for row in rows] == [state, state]
    text = run(site, "status", LI_PLUGINS="1").stdout
    assert "fakelib.scores:score" in text
    assert "\x1b" not in text


def test_status_reports_a_broken_plugin_by_its_exit_code(site):
    site.plugin("broken", "raise OSError('no licence')")
    done = run(site, "status")
    assert done.returncode == 1
    assert "OSError: no licence" in done.stdout


# Running programs.

PROGRAM = """
import json, os, sys
from fakelib.scores import score
import beside
if __name__ == "__main__":
    print(json.dumps({
        "score": score(1)[0], "argv": sys.argv, "path": sys.path[0], "variable": os.environ.get("LI_PLUGINS"),
        "main": sys.modules["__main__"].__dict__ is globals(), "file": __file__, "package": __package__,
        "spec": __spec__ and __spec__.name, "beside": beside.__file__,
    }))
    sys.exit(7)
"""


@pytest.fixture
def program(site):
    """Write a program in a folder of its own, beside a module, and as a module of a package."""
    site.adapter()
    folder = site.path / "programs"
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM)
    (folder / "beside.py").touch()
    (site.path / "beside.py").touch()
    site.module("package.program", PROGRAM)
    return "programs/program.py"


def outcome(done):
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_run_a_script_as_python_would_but_patched(site, program):
    expected_code, expected = outcome(site.run(program, "--epochs", "3", "-m"))
    code, found = outcome(run(site, "run", program, "--epochs", "3", "-m"))
    assert (expected.pop("score"), found.pop("score")) == ("library", "ours")
    assert (expected.pop("variable"), found.pop("variable")) == (None, "1")
    assert found["file"] == str(site.path / program)
    assert (code, found) == (expected_code, expected) == (7, found)
    assert found["argv"] == [program, "--epochs", "3", "-m"]


def test_run_a_module_as_python_would_but_patched(site, program):
    expected_code, expected = outcome(site.run("-m", "package.program", "--help", "--adapters", "x"))
    code, found = outcome(run(site, "run", "-m", "package.program", "--help", "--adapters", "x"))
    assert (expected.pop("score"), found.pop("score")) == ("library", "ours")
    assert (expected.pop("variable"), found.pop("variable")) == (None, "1")
    assert (code, found) == (expected_code, expected) == (7, found)


def test_run_a_folder_with_a_main(site, program):
    (site.path / "programs" / "__main__.py").write_text("import sys, beside\nprint(beside.__file__, sys.path[0])")
    expected = site.run("programs").stdout
    assert "beside.py" in expected
    assert run(site, "run", "programs").stdout == expected


def test_run_enables_the_named_adapters_only(site, program):
    _, found = outcome(run(site, "run", "--adapters", "fake", program))
    assert (found["score"], found["variable"]) == ("ours", "fake")
    site.adapter("other")
    _, found = outcome(run(site, "run", "--adapters", "other", program))
    assert (found["score"], found["variable"]) == ("library", "other")
    _, found = outcome(run(site, "run", program, LI_PLUGINS="other"))
    assert (found["score"], found["variable"]) == ("library", "other")
    _, found = outcome(run(site, "run", "--adapters", "1", program, LI_PLUGINS="other"))
    assert (found["score"], found["variable"]) == ("ours", "1")


def test_run_enables_an_opt_in_adapter_by_name(site, program):
    site.adapter("mend", fields=", opt_in=True")
    code = "import mendlib.scores, os, sys; print(mendlib.scores.score(1)[0], os.environ['LI_PLUGINS'])"
    site.module("mended", code)
    for asked, expected in (("1", "library 1"), ("mend", "ours mend"), ("1,mend", "ours 1,mend")):
        assert run(site, "run", "--adapters", asked, "mended.py").stdout.strip() == expected


def test_zero_in_the_environment_beats_run(site, program):
    _, found = outcome(run(site, "run", program, LI_PLUGINS="0"))
    assert (found["score"], found["variable"]) == ("library", "0")


def test_run_enables_nothing_when_asked_to(site, program):
    _, found = outcome(run(site, "run", "--adapters", "0", program))
    assert (found["score"], found["variable"]) == ("library", "0")
    _, found = outcome(run(site, "run", "--adapters", "off", program, LI_PLUGINS="1"))
    assert (found["score"], found["variable"]) == ("library", "0")
    for nothing in ("", " ,"):
        done = run(site, "run", "--adapters", nothing, program)
        assert done.returncode == 2
        assert "names no adapter; say 0 for none, 1 for all" in done.stderr
        assert done.stdout == ""


def test_run_refuses_what_it_cannot_find(site, program):
    done = run(site, "run", "--adapters", "fakke", program)
    assert done.returncode == 2
    assert "did you mean 'fake'?" in done.stderr
    assert done.stdout == ""
    done = run(site, "run", "nowhere.py")
    assert done.returncode == 2
    assert "there is no file 'nowhere.py'" in done.stderr


def test_an_exception_of_the_program_is_shown_as_python_shows_it(site):
    site.module("fails", "raise LookupError('mine')")
    done = run(site, "run", "fails.py")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "LookupError: mine"
    assert "fails.py" in done.stderr


def test_spawned_children_of_a_program_can_import_its_main(site):
    site.module(
        "parent",
        """
        import multiprocessing, os
        def work(x):
            return f"{__name__} {x} {os.environ['LI_PLUGINS']}"
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(work, (1,)))
        """,
    )
    assert run(site, "run", "parent.py").stdout == "__mp_main__ 1 1\n"


# Fingerprints.


def test_fingerprint_prints_found_beside_known(site):
    site.adapter()
    done = run(site, "fingerprint", "fake")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "fake: tested fakelib>=1,<2, installed 1.5",
        "fakelib.scores:score  7ba63937  known (1.5)",
        "fakelib.scores:Scorer.__call__  4672e0c6  known (1.5)",
    ]
    file = site.path / "fakelib" / "scores.py"
    file.write_text(file.read_text().replace('("library", x, y)', '("changed", x, y)'))
    done = run(site, "fingerprint", "fakelib.scores:score")
    assert done.returncode == 1
    assert "unknown; known bodies: 7ba63937 (1.5)" in done.stdout
    done = run(site, "fingerprint", "fakelib.scores:nothing")
    assert done.returncode == 1
    assert "AttributeError" in done.stdout
    done = run(site, "fingerprint", "json:dumps")
    assert done.returncode == 0
    assert "no adapter lists a body of it" in done.stdout


def test_fingerprint_of_a_patched_library_is_the_originals(site):
    site.adapter()
    site.module("sitecustomize", "import li_plugins; li_plugins.enable('fake')")
    assert "7ba63937  known" in run(site, "fingerprint", "fake").stdout


@pytest.mark.parametrize(("what", "says"), [("fakke", "did you mean 'fake'?"), ("fake:", "module:qualified.name")])
def test_fingerprint_of_something_unknown(site, what, says):
    site.adapter()
    done = run(site, "fingerprint", what)
    assert done.returncode == 2
    assert says in done.stderr


# Doctor asks torch in a process of its own.


def test_doctor_tells_everything_and_imports_no_library(site):
    site.adapter()
    site.adapter("newer", version="3.0")
    fail_if_imported(site)
    site.plugin("broken", "raise OSError('no licence')")
    done = run(site, "doctor", "--json", LI_PLUGINS="1", TORCH_DEVICE_BACKEND_AUTOLOAD="0", LI_PLUGINS_LOG="loud")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["versions"]["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert {"li-plugins", "torch", "triton", "CUDA", "driver"} <= set(found["versions"])
    libraries = {library["adapter"]: library for library in found["libraries"]}
    assert libraries["fake"] == {
        "adapter": "fake", "requires": "fakelib>=1,<2", "installed": "1.5", "plugin": "fake", "reason": ""
    }  # fmt: skip
    assert libraries["newer"]["reason"].startswith("newerlib 3.0 is installed")
    rows = {(row["adapter"], row["target"]): row for row in found["rows"]}
    assert rows["fake", "fakelib.scores:score"]["state"] == "armed"
    assert rows["newer", ""]["state"] == "out-of-range"
    assert rows["broken", ""]["state"] == "broken"
    assert found["variables"]["LI_PLUGINS"] == "1"
    advice = "\n".join(found["advice"])
    for says in ("no licence", "newerlib 3.0 is installed", "use `li-plugins run`", "LI_PLUGINS_LOG takes"):
        assert says in advice


def test_doctor_is_not_content_with_a_name_that_nobody_offers(site):
    site.adapter()
    done = run(site, "doctor", "--json", LI_PLUGINS="fakke")
    found = json.loads(done.stdout)
    assert (done.returncode, found["healthy"]) == (1, False)
    assert "did you mean 'fake'?" in "\n".join(found["advice"])
    assert json.loads(run(site, "doctor", "--json", LI_PLUGINS="fake").stdout)["healthy"]


def test_doctor_shows_a_release_that_is_too_old_to_count(site):
    site.distribution("oldlib", "5.3.0")
    site.plugin(
        "old",
        """
        @hookimpl
        def li_plugins_adapters():
            return [Adapter("old", "oldlib>=6,<7", [Target("oldlib:f", "nowhere:f")], since="6")]
        """,
    )
    (line,) = [line for line in run(site, "doctor").stdout.splitlines() if "oldlib>=6,<7" in line]
    assert line.split()[:2] == ["old", "5.3.0"]
    assert "oldlib 5.3.0 is older than 6" in line


# Explain imports torch: here, once for all the unit tests.


@pytest.fixture
def explain(site, monkeypatch, capsys):
    """Return a function that runs ``li-plugins explain`` in this process: exit code, stdout, stderr."""
    pytest.importorskip("torch")
    import li_plugins.host.session as module
    from li_plugins.__main__ import main

    session = module.Session()
    monkeypatch.setattr(module, "SESSION", session)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main(["explain", *arguments])
        return (exit_.value.code, *capsys.readouterr())

    yield call
    session.close()


EXPLAINED = """
from li_plugins.api import Decline

def score(queries_embeddings, documents_embeddings, documents_mask=None, backend=None):
    raise RuntimeError("computed")

def explain_score(queries_embeddings, documents_embeddings, documents_mask=None, backend=None):
    if backend is not None:
        return Decline(f"backend={backend!r} was asked for")
    mask = "no mask" if documents_mask is None else f"{documents_mask.dtype} mask {tuple(documents_mask.shape)}"
    shapes = tuple(queries_embeddings.shape), tuple(documents_embeddings.shape)
    return f"{queries_embeddings.dtype} {shapes} {mask} grad={queries_embeddings.requires_grad}"
"""


def test_explain_builds_the_call_and_tells_its_plan(site, explain):
    site.adapter(
        library="def score(queries_embeddings, documents_embeddings, documents_mask=None, backend=None): ...",
        replacements=EXPLAINED,
        targets='Target("fakelib.scores:score", "fake_replacements:score", explain="fake_replacements:explain_score")',
    )
    shapes = ("fakelib.scores:score", "--queries", "4,32,128", "--documents", "8x180x128")
    code, out, _ = explain(*shapes, "--dtype", "bfloat16", "documents_mask=8x180", "--json", "--grad")
    assert code == 0
    found = json.loads(out)
    assert found["accelerated"]
    assert found["answer"] == "torch.bfloat16 ((4, 32, 128), (8, 180, 128)) torch.bool mask (8, 180) grad=True"
    code, out, _ = explain(*shapes, "backend='torch'")
    assert "declines, the original runs: backend='torch' was asked for" in out
    for more, says in [
        (("--dtype", "float1"), "'float1' is not a dtype of torch"),
        (("--device", "nowhere"), "no tensor can be on 'nowhere': "),
        (("--device", "cuda:77"), "no tensor can be on 'cuda:77': "),
        (("backend=[",), "neither a shape nor a Python literal"),
        (("mask=2x2",), "is not PARAMETER=VALUE with one of: queries_embeddings, "),
    ]:
        code, _, error = explain(*shapes, *more)
        assert code == 2
        assert says in error
    code, _, error = explain(*shapes[:3])
    assert code == 2
    assert "missing a required argument: 'documents_embeddings'" in error


def test_explain_says_what_is_wrong_with_the_question(site, explain):
    site.adapter()
    for arguments, code, says in [
        (("fakelib.scores:scor",), 2, "no adapter names"),
        (("fakelib.scores",), 2, "a target reads module:qualified.name"),
        (("fakelib.scores:score", "--queries", "4,32"), 2, "no parameter begins with 'queries'"),
        (("fakelib.scores:score", "z=1"), 2, "is not PARAMETER=VALUE with one of: x, y"),
    ]:
        found, _, error = explain(*arguments)
        assert found == code
        assert says in error


def test_explain_of_a_function_that_is_not_patched_has_an_exit_code(site, explain):
    site.adapter(version="3.0")
    site.adapter("gone", requires="lib-of-nobody>=1", targets='Target("nowhere:f", "nowhere:f")')
    code, out, _ = explain("fakelib.scores:score")
    assert code == 1
    assert "out-of-range" in out
    assert "fakelib 3.0 is installed" in out
    code, _, error = explain("nowhere:f")
    assert code == 1
    assert "nowhere:f is not there: ModuleNotFoundError" in error


# Tune measures on a GPU: here its words, with what was measured made up.


def test_tune_needs_a_cuda_device(site):
    done = run(site, "tune", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "tune measures on a CUDA device, and torch finds none" in done.stderr
    done = run(site, "tune", "--dim", "0", "--dtype", "float64")
    assert done.returncode == 2
    assert "Invalid value" in done.stderr


@pytest.fixture
def tuned(site, monkeypatch, capsys):
    """Return a function that runs ``li-plugins tune`` as if there were a GPU: exit code, stdout, stderr."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from li_plugins.__main__ import main
    from li_plugins.ops.maxsim import tuning_run
    from li_plugins.ops.maxsim.tuning_search import Outcome

    asked = []

    def tune(shape, device, *, dry_run, on_trial):
        asked.append((shape, device, dry_run))
        options = {"num_warps": 4, "num_stages": 3, "maxnreg": None}
        forward = {"ROWS": 128, "BLOCK_N": 64, "documents": None, **options}
        gradient = {"ROWS": 16, "VISITS": 2, "BLOCK_D": 128, **options}
        on_trial("scores", forward)
        better = Outcome("scores", "a key", forward, 0.4, {**forward, "ROWS": 256, "documents": 8}, 0.3, 9)
        return [better, Outcome("queries", "another", gradient, 0.2, gradient, 0.2, 5, ("OutOfResources: memory",))]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card X")
    monkeypatch.setattr(tuning_run, "tune", tune)
    monkeypatch.setenv("LI_PLUGINS_TUNING", str(site.path / "rows.json"))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main(["tune", *arguments])
        return (exit_.value.code, *capsys.readouterr())

    call.asked = asked
    return call


def test_tune_shows_a_table(site, tuned):
    code, out, error = tuned("--queries", "7", "--candidates", "--dtype", "float16", "--dim", "96")
    assert code == 0, error
    ((shape, device, dry_run),) = tuned.asked
    assert (*shape[:5], str(shape.dtype), shape.candidates) == (7, 512, 32, 180, 96, "torch.float16", True)
    assert (str(device), dry_run) == ("cuda:1", False)
    assert "Card X" in out
    line = next(line for line in out.splitlines() if "forward" in line)
    for cell in ("128 x 64, warps 4, stages 3", "0.4000", "256 x 64, documents 8, warps 4", "0.3000", "25.0%"):
        assert cell in line
    line = next(line for line in out.splitlines() if "queries' gradient" in line)
    assert "the built-in" in line
    assert f"1 stored in {site.path / 'rows.json'}; programs that start from now on" in out
    assert "\x1b" not in out


def test_a_dry_run_of_tune_in_json(tuned):
    code, out, _ = tuned("--dry-run", "--json")
    assert code == 0
    assert tuned.asked[0][2]
    found = json.loads(out)
    assert (found["gpu"], found["file"]) == ("Card X", None)
    assert [(row["phase"], row["stored"]) for row in found["rows"]] == [("scores", False), ("queries", False)]
    assert found["rows"][0]["best"]["ROWS"] == 256
    assert found["rows"][1]["refused"] == ["OutOfResources: memory"]
    assert "Nothing is stored: this is a dry run." in tuned("--dry-run")[1]
