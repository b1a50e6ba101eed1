"""What an outcome depends on: the source of a plugin, of the core and of this harness, read without importing it."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from mtlcore.hosting import spec_without_import

NOT_ITS_OWN = ("builtins", "abc", "mtlcore")
"""Packages of base classes that are no part of a plugin; the core is in :func:`harness`."""


def source_of(module: str) -> bytes | None:
    """The source that an import of ``module`` would run here and now; None if there is none."""
    spec, _ = spec_without_import(module)
    try:
        return None if spec is None or not spec.has_location else Path(spec.origin or "").read_bytes()
    except OSError:
        return None


def digest(source: bytes | None) -> str:
    """Of what one source does, not of how it is explained; that of a missing one equals no other."""
    return "" if source is None else hashlib.sha256(_without_words(source)).hexdigest()


def _without_words(source: bytes) -> bytes:
    """The lines of code, without docstrings, ``paper = "..."``, and comments that have lines of their own. Text, not a
    syntax tree, because that of one Python is not that of another. What cannot be parsed stays whole."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return source
    lines: list[bytes | None] = list(source.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
    # What may hold lines that look like comments, or end in blanks that count.
    texts = [node for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.JoinedStr))]
    inside = {
        n for text in texts if text.lineno != text.end_lineno for n in range(text.lineno - 1, text.end_lineno or 0)
    }
    for node in _words(tree):
        first, last = node.lineno, node.end_lineno or node.lineno
        alone = not (lines[first - 1] or b"")[: node.col_offset].strip()
        if alone and not (lines[last - 1] or b"")[node.end_col_offset :].strip():
            lines[first - 1 : last] = [None] * (last - first + 1)
    kept = [
        line if number in inside else line.rstrip()
        for number, line in enumerate(lines)
        if line is not None and (number in inside or (line.strip() and not line.lstrip().startswith(b"#")))
    ]
    return b"\n".join(kept)


def _words(tree: ast.AST) -> Iterator[ast.stmt]:
    """Strings that nothing computes with: docstrings, and of a class the addresses of its papers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and _is_text(node.value):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from filter(_is_paper, node.body)


def _is_paper(statement: ast.stmt) -> bool:
    """``paper = "..."``, or a tuple of texts; not a field of a dataclass, which is an option."""
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
    elif isinstance(statement, ast.AnnAssign) and "ClassVar" in ast.dump(statement.annotation):
        target = statement.target
    else:
        return False
    parts = statement.value.elts if isinstance(statement.value, ast.Tuple) else [statement.value]
    return isinstance(target, ast.Name) and target.id == "paper" and all(map(_is_text, parts))


def _is_text(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def plugin(cls: type) -> dict[str, str]:
    """{module: digest} of a class's module, of its bases' modules, and of what these import from their own package.

    Complete in this sense: whatever else the class could come to depend on, one of these files must change first. A
    class without a source (typed into a notebook) has an entry with an empty digest.
    """
    found: dict[str, str] = {}
    for base in cls.__mro__:
        if base.__module__.split(".")[0] not in NOT_ITS_OWN:
            _gather(base.__module__, found)
    found.setdefault(cls.__module__, "")
    return dict(sorted(found.items()))


def unchanged(sources: dict[str, str]) -> bool:
    """Whether every module still has the source it had."""
    return all(known != "" and digest(source_of(module)) == known for module, known in sources.items())


def _gather(module: str, found: dict[str, str]) -> None:
    """The module's digest and, along its import statements and upwards, those of its own package."""
    if module in found:
        return
    source = source_of(module)
    if source is None:
        return  # a name inside a module, or no Python source at all
    found[module] = digest(source)
    top = module.split(".")[0]
    if module != top:
        _gather(module.rpartition(".")[0], found)
    spec, _ = spec_without_import(module)
    package = module if spec is not None and spec.submodule_search_locations else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] == top:
                _gather(name, found)


def _version(distribution: str) -> str:
    """The installed one. A core-only install reads certificates, too, and has no hypothesis: then none is valid."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def harness() -> str:
    """Digest of every source file of the core and of this wing, and the versions of what they compute with."""
    versions = " ".join(map(_version, ("torch", "hypothesis")))
    total = hashlib.sha256(versions.encode())
    for package in ("mtlcore", "mtlverify"):
        spec, _ = spec_without_import(package)
        for root in (spec.submodule_search_locations or []) if spec is not None else []:
            for path in sorted(Path(root).rglob("*.py")):
                total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
