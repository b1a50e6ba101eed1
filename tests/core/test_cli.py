"""The command line as its users meet it: in a process of its own.

`support.command` starts it: a fork of a process that has torch already. A test about the start of a process uses a
fresh interpreter.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from operator import attrgetter
from pathlib import Path

import pytest

import mtlcore
from mtlcore.discovery import BUILT_IN
from mtlcore.hookspecs import KINDS
from mtlcore.registry import registry
from mtlcore.showing import show
from mtlverify.ghostwriter import write_tests
from support import command, third_party

METHODS = ("aggregator", "detector", "teleport", "explorer", "merger")
CACHE = tempfile.TemporaryDirectory()
"""What `mtl verify` stores here is not the user's business."""


def mtl(*arguments: str, site: Path | None = None, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MTLCORE_")}
    environment = {**clean, "MTLCORE_CACHE": CACHE.name, **env}
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    return command.mtl(*arguments, env=environment, cwd=cwd)


def rows(*arguments: str, site: Path | None = None, **env: str) -> list[dict]:
    done = mtl("list", "--json", *arguments, site=site, **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("site")
    third_party.install(place, "good-mtl", "good = good_mtl", third_party.GOOD)
    third_party.install(place, "broken-mtl", "broken = broken_mtl", third_party.BROKEN)
    third_party.install(place, "clashing-mtl", "clashing = clashing_mtl", third_party.CLASHING)
    return place


def test_list_shows_every_plugin_with_provenance(site):
    found = rows(site=site)
    fields = {
        "kind",
        "name",
        "distribution",
        "version",
        "status",
        "problem",
        "certificate",
        "needs",
        "packages",
        "description",
    }
    assert all(set(r) == fields for r in found)
    by_name = {(r["name"], r["distribution"]): r for r in found}
    good = by_name["third-party-mean", "good-mtl"]
    assert (good["kind"], good["version"], good["status"], good["problem"]) == ("aggregator", "0.1", "ok", None)
    broken = by_name["broken", "broken-mtl"]
    assert broken["status"] == "broken"
    assert "a_module_that_is_not_there" in broken["problem"]
    clash = by_name["mgda", "clashing-mtl"]
    assert clash["status"] == "broken"
    assert "mtlcore" in clash["problem"]
    assert "clashing-mtl" in clash["problem"]
    assert by_name["mgda", "mtlcore"]["status"] == "ok"


def test_others_are_not_changed_by_broken_ones(site):
    alone = [r for r in rows() if r["distribution"] == "mtlcore"]
    beside = [r for r in rows(site=site) if r["distribution"] == "mtlcore"]
    assert alone == beside
    assert alone


def test_environment(site):
    assert {r["distribution"] for r in rows(site=site, MTLCORE_PLUGINS="off")} == {"mtlcore"}
    assert {r["distribution"] for r in rows(site=site, MTLCORE_PLUGINS="good")} == {"mtlcore", "good-mtl"}
    misspelt = mtl("list", site=site, MTLCORE_PLUGINS="off,goood")
    assert misspelt.returncode == 0
    assert "MTLCORE_PLUGINS allows 'goood', which is not installed. Did you mean 'good'" in misspelt.stderr
    assert mtl("list", site=site, MTLCORE_PLUGINS="off").stderr == ""
    refused = mtl("list", site=site, MTLCORE_TIMEOUT="soon")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "MTLCORE_TIMEOUT='soon' is not a number of seconds greater than 0." in refused.stderr
    strict = mtl("list", site=site, MTLCORE_STRICT="1")
    assert strict.returncode == 2
    assert "broken-mtl" in strict.stderr
    assert "Traceback" not in strict.stderr
    traced = mtl("list", site=site, MTLCORE_TRACE="1")
    assert "mtlcore: mtlcore_register_aggregators(register=<good-mtl>)" in traced.stderr


def test_readable_table_and_kinds(site):
    table = mtl("list", "--kind", "aggregator", site=site).stdout
    assert "third-party-mean" in table
    assert "dominated" not in table
    assert mtl("list", "--kind", "nonsense").returncode == 2


def test_unknown_command_and_version():
    assert mtl("nonsense").returncode == 2
    assert "mtlcore" in mtl("--version").stdout


@pytest.mark.parametrize(
    "line", ["", "list", "verify", "bench", "bench list", "bench run", "bench report", "new-plugin"]
)
def test_help_fits_into_eighty_columns(line):
    done = mtl(*line.split(), "--help", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert "…" not in done.stdout  # what is cut off cannot be read


def test_list_shows_what_verify_found(site, tmp_path):
    """Kept promises, a broken one, and nothing where nothing was verified."""
    place = tmp_path / "site"
    third_party.install(place, "claims-mtl", "claims = claims_mtl", third_party.CLAIMS_TOO_MUCH)
    env = {"MTLCORE_CACHE": str(tmp_path)}
    assert mtl("verify", "imbalance", "--max-examples", "5", "--jobs", "1", site=place, **env).returncode == 0
    assert mtl("verify", "third-party-boast", "cosine", "--jobs", "1", site=place, **env).returncode == 1
    found = {r["name"]: r["certificate"] for r in rows(site=place, **env)}
    assert found["cosine"]["passed"] is True
    assert "symmetric" in found["cosine"]["kept"]
    assert found["third-party-boast"]["passed"] is False
    assert found["third-party-boast"]["broken"] == ["low-precision-network", "non-conflicting"]
    assert found["imbalance"] is None, "5 inputs per law are too few for a certificate"
    table = mtl("list", site=place, **env).stdout
    assert f"certified: {len(found['cosine']['kept'])} laws, {found['cosine']['date']}" in table
    assert "broken: low-precision-network, non-conflicting (2 of" in table
    other = {"MTLCORE_CACHE": str(tmp_path / "elsewhere")}
    assert {str(r["certificate"]) for r in rows(site=place, **other)} == {"None"}
    _no_heavy_imports(place, env)


@pytest.mark.parametrize(
    ("module", "files", "problem"),
    [
        ("liar_mtl", third_party.BAD_CERTIFIER, "ValueError: no idea"),
        ("half_mtl", third_party.HALF_CERTIFIER, "KeyError: 'rows'"),
    ],
)
def test_list_survives_whoever_answers_badly_about_certificates(tmp_path, module, files, problem):
    third_party.install(tmp_path, "liar-mtl", f"liar = {module}", files)
    done = mtl("list", "--kind", "detector", site=tmp_path, MTLCORE_CACHE=str(tmp_path))
    assert done.returncode == 0
    assert "cosine" in done.stdout
    assert problem in done.stderr


def test_list_imports_neither_torch_nor_plugin_code(site, tmp_path):
    _no_heavy_imports(site, {"MTLCORE_CACHE": str(tmp_path)})


def _no_heavy_imports(site, more):
    program = (
        "import sys, runpy; sys.argv = ['mtl', 'list']\n"
        "try: runpy.run_module('mtlcore', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'cvxpy', 'hypothesis', 'pandas', 'good_mtl.method'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    env = {**os.environ, "PYTHONPATH": str(site), **more}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", list(KINDS))
def test_new_plugin_registers_and_passes_its_tests(tmp_path, kind):
    made = mtl("new-plugin", "my-method", "--kind", kind, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    package = tmp_path / "mtlcore-my-method"
    info = package / "mtlcore_my_method-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mtlcore-my-method\nVersion: 0.1.0\n")
    text = (package / "pyproject.toml").read_text()
    point = text.split("[project.entry-points.mtlcore]\n")[1].split("\n")[0].replace('"', "")
    (info / "entry_points.txt").write_text(f"[mtlcore]\n{point}\n")
    found = [r for r in rows("--load", "--kind", kind, site=package) if r["name"] == "my-method"]
    assert [(r["kind"], r["status"]) for r in found] == [(kind, "ok")]
    env = {**os.environ, "PYTHONPATH": str(package)}
    tests = command.python("-m", "pytest", "-q", "-p", "no:cacheprovider", package / "tests", env=env, cwd=package)
    assert tests.returncode == 0, tests.stdout + tests.stderr
    again = mtl("new-plugin", "my-method", "--kind", kind, cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_new_plugin_refuses_bad_names(tmp_path):
    assert "kebab" in mtl("new-plugin", "My_Method", cwd=tmp_path).stderr
    assert "choose one of" in mtl("new-plugin", "fine", "--kind", "tool", cwd=tmp_path).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["none", "true", "class"])
def test_new_plugin_refuses_words_of_python(tmp_path, name):
    assert f"{name!r} is a word of Python" in mtl("new-plugin", name, cwd=tmp_path).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind"), [("aggregation", "aggregator"), ("needs", "aggregator"), ("conflict", "detector"),
                       ("displacement", "teleport")],
)  # fmt: skip
def test_the_class_of_a_new_plugin_is_not_called_like_what_its_module_imports(tmp_path, name, kind):
    assert mtl("new-plugin", name, "--kind", kind, cwd=tmp_path).returncode == 0
    tree = ast.parse((tmp_path / f"mtlcore-{name}" / f"mtlcore_{name}" / "method.py").read_text())
    imported = {a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    (made,) = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert made not in imported


def test_new_plugin_refuses_a_taken_name_and_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "afile").write_text("")
    for arguments, complaint in (
        (("gradops",), "aggregator 'gradops' exists already, in distribution 'mtlcore"),
        (
            ("gradops", "--kind", "detector"),
            "aggregator 'gradops' exists already",
        ),  # `mtl verify gradops` would ask which
        (("fine", "--in", "afile"), "nothing can be written into 'afile': "),
        (("fine", "--in", "afile/below"), "nothing can be written into 'afile/below': "),
    ):
        done = mtl("new-plugin", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["afile"]


def test_the_tests_of_a_new_plugin_fail_where_another_one_of_that_name_answers(tmp_path):
    """Its laws alone would pass: they would be those of the other one."""
    mtl("new-plugin", "my-method", cwd=tmp_path)
    package = tmp_path / "mtlcore-my-method"
    other = {"other_mtl.py": third_party.GOOD["good_mtl/__init__.py"].replace("third-party-mean", "my-method")}
    third_party.install(tmp_path / "site", "other-mtl", "other = other_mtl", {**third_party.GOOD, **other})
    env = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{tmp_path / 'site'}"}
    ours = ("-k", "package", package / "tests")
    tests = command.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *ours, env=env, cwd=package)
    assert tests.returncode == 1, tests.stdout + tests.stderr
    assert "good_mtl.method" in tests.stdout


def test_third_party_method_verifies_and_trains_beside_a_broken_one(site, tmp_path):
    report = tmp_path / "verdict.json"
    done = mtl("verify", "third-party-mean", "--max-examples", "10", "--jobs", "1", "--json", str(report), site=site)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {r["law"]: r["status"] for r in json.loads(report.read_text())}
    assert verdicts["permutation-equivariant"] == "verified"
    assert {"finite", "pure", "deterministic", "shape-dtype-device"} <= set(verdicts)
    program = (
        "import torch, mtlcore\n"
        "trunk, head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)\n"
        "optimizer = torch.optim.SGD([*trunk.parameters(), *head.parameters()], lr=0.1)\n"
        "mt = mtlcore.MultiTask(trunk, 'third-party-mean', optimizer)\n"
        "x = torch.ones(5, 3)\n"
        "def closure():\n"
        "    z = trunk(x)\n"
        "    return {'a': head(z).square().mean(), 'b': (head(z) - 1).square().mean()}, z\n"
        "first = mt.step(closure).losses.sum()\n"
        "for _ in range(20): last = mt.step(closure).losses.sum()\n"
        "assert last < first\n"
    )
    env = {**os.environ, "PYTHONPATH": str(site)}
    trained = command.python("-c", program, env=env)
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr.count("broken-mtl") == 1


def test_a_plugin_that_breaks_on_first_use_is_an_error_row_and_the_others_are_checked(tmp_path):
    third_party.install(tmp_path, "lazily-broken-mtl", "lazily = lazily_broken_mtl", third_party.LAZILY_BROKEN)
    report = tmp_path / "verdict.json"
    done = mtl(
        "verify", "lazily-broken", "cosine", "--max-examples", "2", "--jobs", "1", "--json", str(report), site=tmp_path
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(report.read_text())
    broken = [r for r in found if r["name"] == "lazily-broken"]
    assert [(r["status"], r["distribution"]) for r in broken] == [("error", "lazily-broken-mtl")]
    assert {r["status"] for r in found if r["name"] == "cosine" and r["claimed"]} == {"verified"}
    listed = [r for r in rows("--load", "--kind", "detector", site=tmp_path) if r["name"] == "lazily-broken"]
    assert listed[0]["status"] == "broken"
    assert "a library is missing" in listed[0]["problem"]


NOISY = {
    "noisy_mtl.py": r"""
        import atexit, os
        from mtlcore import hookimpl

        def shout(*_):
            print("[bold]not json[/]")
            os.write(1, b"nor this\n")
            os.system("echo from a child")

        shout()
        atexit.register(shout)

        @hookimpl
        def mtlcore_register_detectors(register):
            shout()
            register("loud\x1b[31m", "noisy_mtl:Nothing")
            raise RuntimeError("\x1b]0;title\x07 \udcff [red]markup[/]")
    """
}
HANGING = {"hanging_mtl.py": "import time\ntime.sleep(600)\n"}


CORE_ONLY = """
import importlib.machinery, sys

HIDDEN = {
    "hypothesis", "cvxpy", "clarabel", "cmaes", "pandas", "matplotlib", "joblib", "jinja2", "moocore", "peft",
    "tensorboard", "wandb", "lightning", "transformers", "accelerate", "distributed",
}


class Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)


sys.meta_path[:] = [Hiding if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""


def test_without_extras_list_is_quiet_and_whole_and_what_needs_one_names_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(CORE_ONLY)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mtlcore", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})

    listed = run("list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert {"nash-mtl", "relu-rescaling", "lora", "doge"} <= set(listed.stdout.split())
    assert "pip install 'mtlcore[verify]' (hypothesis not installed)" in listed.stdout
    assert "pip install 'mtlcore[bench]'" in listed.stdout
    with_peft = "adapter = peft-lora, peft-loha or peft-lokr"
    assert f"To use lora with {with_peft}: pip install 'mtlcore[teleport]' (peft not installed)" in listed.stdout
    shown = " ".join(run("show", "lora").stdout.split())
    assert f"optional packages: peft, for {with_peft} (not installed: pip install 'mtlcore[teleport]')" in shown
    for arguments, extra in ((("verify", "upgrad", "--fresh"), "verify"), (("bench", "list"), "bench")):
        refused = run(*arguments)
        assert refused.returncode == 2
        assert f"pip install 'mtlcore[{extra}]'" in refused.stderr


def test_nothing_that_a_plugin_prints_in_another_process_breaks_json(tmp_path):
    talks = dict(third_party.GOOD)
    talks["good_mtl/method.py"] = talks["good_mtl/method.py"].replace(
        "k = view", "import os; os.write(1, b'not json'); k = view"
    )
    third_party.install(tmp_path, "good-mtl", "good = good_mtl", talks)
    arguments = ("third-party-mean", "--claimed", "--max-examples", "2", "--jobs", "2", "--json", "-")
    done = mtl("verify", *arguments, site=tmp_path)
    assert {row["name"] for row in json.loads(done.stdout)} == {"third-party-mean"}
    assert "not json" in done.stderr


def test_nothing_that_a_plugin_prints_breaks_json_and_one_that_hangs_is_a_row(tmp_path):
    third_party.install(tmp_path, "noisy-mtl", "noisy = noisy_mtl", NOISY)
    third_party.install(tmp_path, "hanging-mtl", "hanging = hanging_mtl", HANGING)
    listed = json.loads(mtl("bench", "list", "--json", site=tmp_path, MTLCORE_TIMEOUT="3").stdout)
    assert {"demo", "multimnist", "upgrad"} <= {row["name"] for part in listed.values() for row in part}
    done = mtl("list", "--json", "--timeout", "3", site=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {r["distribution"]: r for r in json.loads(done.stdout) if r["status"] == "broken"}
    assert "it took longer than 3 s" in found["hanging-mtl"]["problem"]
    assert r"RuntimeError: \x1b]0;title\x07 \udcff [red]markup[/]" in found["noisy-mtl"]["problem"]
    assert "not json" in done.stderr
    assert not {"\x1b", "\x07", "\udcff"} & set(
        done.stdout + done.stderr.replace("\x1b[33m", "").replace("\x1b[0m", "")
    )


def test_misspelt_commands_and_show():
    assert "Did you mean 'list'?" in mtl("lst").stderr
    shown = mtl("show", "cagrad").stdout
    assert "a finite number in [0, inf)" in shown
    assert "claims: conic-combination" in shown
    assert "paper: https://arxiv.org/abs/2110.14048" in shown
    assert re.search(r"ledger \(default options\): .*refuted: [^;]*non-conflicting", shown.replace("\n  ", " "))
    law = mtl("show", "--law", "non-conflicting").stdout
    assert "No task gradient has a negative inner product" in law
    assert "Did you mean 'cagrad'" in mtl("show", "cagrd").stderr


def test_show_says_of_every_aggregator_what_the_table_of_the_docs_says(capsys):
    """Of wrappers and of ``sdmgrad`` it did not even say what they need, because that depends on their options."""
    table = (Path(__file__).parents[2] / "docs" / "reference" / "choosing.md").read_text(encoding="utf-8")
    for name in mtlcore.available("aggregator"):
        show(name, "aggregator")
        facts = dict(re.findall(r"^([a-z ]+): (.+)$", capsys.readouterr().out.replace("\n  ", " "), re.MULTILINE))
        line = next(row for row in table.splitlines() if row.startswith(f"| [`{name}`]"))
        cells = [cell.strip().replace("`", "") for cell in line.split("|")[1:-1]]
        assert facts["needs"] == cells[1].lower()
        assert [facts[k] for k in ("cost of a step", "random", "absent tasks")] == [cells[2], cells[7], cells[8]], name
        assert set(facts["state"].split(", ")) == set(cells[6].split(", ")), name
        assert facts.get("paper", "–").split(", ")[0] in cells[9], name


def test_packages_that_some_options_need_are_listed_before_anybody_misses_them(tmp_path):
    text = third_party.GOOD["good_mtl/method.py"]
    packages = "packages = {'no_such_package': 'speed', 'nor_this_one': 'size'}"
    greedy = text.replace("needs =", packages + "; needs =")
    assert greedy != text
    third_party.install(tmp_path, "good-mtl", "good = good_mtl", {**third_party.GOOD, "good_mtl/method.py": greedy})
    by_name = {(r["kind"], r["name"]): r for r in rows(site=tmp_path)}
    assert by_name["teleport", "lora"]["packages"].keys() == {"peft"}
    assert by_name["aggregator", "upgrad"]["packages"] == {}
    assert by_name["aggregator", "third-party-mean"]["packages"] == {"no_such_package": "speed", "nor_this_one": "size"}
    listed = mtl("list", site=tmp_path).stdout
    assert "peft (optional)" in listed
    told = "To use third-party-mean with speed: pip install no_such_package (no_such_package not installed)"
    assert told in listed
    shown = mtl("show", "third-party-mean", site=tmp_path).stdout
    assert "optional packages: no_such_package, for speed" in shown
    assert "; nor_this_one, for size" in shown.replace("\n  ", " ")


def test_what_show_suggests_for_a_name_of_two_kinds_is_not_refused():
    """`mtl verify random` is: random is an aggregator and a teleport."""
    names = [e.name for kind in METHODS for e in registry().entries(kind)]
    shared = {name for name in names if names.count(name) > 1}
    assert shared
    for kind in METHODS:
        for name in shared & set(map(attrgetter("name"), registry().entries(kind))):
            told = " ".join(mtl("show", name, "--kind", kind, MTLCORE_CACHE=os.devnull).stdout.split())
            assert f"certificate: none yet: mtl verify {name} --kind {kind} " in told
            assert f"First written by `mtl ghostwrite {name} --kind {kind}`;" in write_tests(name, kind)
    assert "certificate: none yet: mtl verify upgrad\n" in mtl("show", "upgrad", MTLCORE_CACHE=os.devnull).stdout


def test_a_docstring_is_shown_without_signs_of_another_markup():
    """They came from the site, which has its own way now."""
    for kind in METHODS:
        for entry in registry().entries(kind):
            if entry.distribution == BUILT_IN:
                assert "\\|" not in registry().load(kind, entry.name).__doc__, entry.name


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("verify non-conflicting", "is the name of a law, not of a method: `mtl verify --law non-conflicting`"),
        ("verify quadratics", "is the name of a problem, not of a method: add --kind problem."),
        ("verify multimnist", "is the name of a task, not of a method."),
        ("verify cosine --kind merger", "no merger called 'cosine': it is the name of a plugin of kind detector."),
        ("show random --kind merger", "a plugin of kind aggregator and of kind teleport."),
        ("peers upgrd", "Did you mean 'UPGrad'"),
        ("peers --json /dev/null/x", "'/dev/null/x' cannot be written to"),
        ("converge ls --json /dev/null/x", "'/dev/null/x' cannot be written to"),
        ("ghostwrite ls --write /dev/null/x", "'/dev/null/x' cannot be written to"),
        ("verify ls --replay nowhere.json", "--replay 'nowhere.json' cannot be read: No such file or directory."),
        ("bench report . --json /dev/null/x", "nothing to report"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_culprit_and_the_way_out(line, told, tmp_path):
    if line.startswith("peers"):
        pytest.importorskip("torchjd")
    done = mtl(*line.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.parametrize("line", ["list", "list --json", "show upgrad", "bench list --json"])
def test_a_full_disk_behind_standard_output_is_one_line(line):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mtlcore", *line.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    said = [text for text in done.stderr.splitlines() if not text.startswith("mtl: waiting for")]  # a busy machine
    assert said == ["mtl: No space left on device: what is written to"]


@pytest.mark.parametrize("kind", METHODS)
def test_show_names_pages_that_exist(kind, capsys):
    checkout = Path(__file__).parents[2]
    own = [e.name for e in registry().entries(kind) if e.distribution == BUILT_IN and e.status == "ok"]
    assert own
    for name in own:
        show(name, kind)
        pages = re.findall(r"docs/[^\s,()]+", capsys.readouterr().out.partition("more: ")[2])
        heads = [(checkout / page).read_text(encoding="utf-8") for page in pages]
        assert any(re.search(rf"^# {name}( \({kind}\))?$", text, re.MULTILINE) for text in heads), (name, pages)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("lst", "'list'"),
        ("bench runn demo", "'run'"),
        ("speed gradent", "'gradients'"),
        ("list --kind agregator", "'aggregator'"),
        ("show --kind detectr cosine", "'detector'"),
        ("show --law finte", "'finite'"),
        ("verify upgrda", "'upgrad'"),
        ("verify upgrad --law non-conflictin", "'non-conflicting'"),
        ("verify --kind teleprot", "'teleport'"),
        ("verify --kind problem cagrad-toi", "'cagrad-toy'"),
        ("converge lss", "'ls'"),
        ("peers --law finit", "'finite'"),
        ("ghostwrite mgdaa", "'mgda'"),
        ("ghostwrite mgda --kind agregator", "'aggregator'"),
        ("new-plugin fine --kind teleprot", "'teleport'"),
        ("bench run dmo", "'demo'"),
        ("bench run dmo.toml", "'demo'"),
        ("bench show dmo", "'demo'"),
        ("bench run demo --out o --method pcgard", "'pcgrad'"),
        ("bench run demo --out o --task multimnst", "'multimnist'"),
    ],
)
def test_what_is_misspelt_is_suggested(line, meant, tmp_path):
    done = mtl(*line.split(), cwd=tmp_path)
    assert done.returncode == 2
    told = " ".join(re.sub("[│\n]", " ", done.stderr + done.stdout).split())
    assert f"Did you mean {meant}" in told, told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir()), "a typing mistake leaves nothing behind"
