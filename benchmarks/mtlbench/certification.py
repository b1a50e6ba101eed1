"""Theory before training: certificates of the plugins of a suite, by whoever can certify."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from mtlbench import records
from mtlbench.formats import Answer, mistakes
from mtlbench.jobs import one_thread
from mtlbench.suite import MethodEntry, digest
from mtlbench.workers import parallel
from mtlcore.hosting import blame, one_line, registry, shown, waiting


def certificates(methods: list[MethodEntry], folder: Path, jobs: int, console: Console) -> dict[str, dict[str, Any]]:
    """{key: certificate} of every plugin in use, with the options that it may be trained with. Whoever certifies knows
    when an older answer still holds, so it is asked again each time."""
    wanted = {_certificate_key(*plugin): plugin for method in methods for plugin in method.plugins()}
    found: dict[str, dict[str, Any]] = {}
    waiting = console.status(f"theory before training: verifying {len(wanted)} plugins")
    with waiting if console.is_terminal else contextlib.nullcontext():
        work = [functools.partial(certify_one, *plugin) for plugin in wanted.values()]
        for certificate in parallel(work, jobs, _not_certified):
            found[_certificate_key(certificate["kind"], certificate["name"], certificate["options"])] = certificate
            mark = {True: "[green]verified[/]", False: "[red]REFUTED[/]", None: "[yellow]not verified[/]"}
            name = with_options(certificate["name"], certificate["options"])
            console.print(f"{mark[certificate['passed']]} " + escape(f"{name}: {certificate['summary']}"))
    ordered = {key: found[key] for key in wanted}
    records.replace(folder / records.CERTIFICATES, ordered)
    return ordered


def certify_one(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Ask whoever can answer whether this plugin keeps what it claims.

    ``passed`` is None if nobody can: either because no certifier is installed, or because the one that was asked
    raised, answered nonsense, or took longer than the seconds that are set (see :func:`refusal`).
    """
    with one_thread():
        began = time.perf_counter()
        try:
            with waiting(f"the certificate of {kind} {name!r}"):
                answer = registry().ask("mtlcore_certify", kind=kind, name=name, options=options)
        except BaseException as error:
            answer = _unanswered(f"could not be checked: {blame(error)}")
        else:
            answer = _nobody() if answer is None else _validated(answer)
        seconds = time.perf_counter() - began
    return {**answer, "kind": kind, "name": name, "options": options, "seconds": seconds}


def refusal(certificate: Mapping[str, Any], allow_refuted: bool = False) -> str | None:
    """Why a plugin with this certificate must not be trained; None if it may be.

    Where no certifier is installed, nothing can be known, and a run says so. A certifier that is there and cannot
    answer is another thing: whoever breaks it must not switch the gate off.
    """
    if certificate["passed"] is False and not allow_refuted:
        return "claims a law that is refuted"
    if certificate.get("unanswered"):
        return "is not certified, because its certifier could not answer (--no-certify trains it unverified)"
    return None


def _nobody() -> dict[str, Any]:
    return {"passed": None, "summary": "no installed plugin can certify it; trained unverified", "rows": []}


def _unanswered(why: str) -> dict[str, Any]:
    return {"passed": None, "summary": f"not certified: {why}", "rows": [], "unanswered": True}


def _validated(answer: Any) -> dict[str, Any]:
    """The answer as plain values, if it has the form of one. Whoever gave it may print and compare as it likes."""
    try:
        found = Answer.model_validate(answer)
        if found.passed is None:
            return _unanswered(one_line(found.summary))
        return {**json.loads(json.dumps(answer, default=shown)), "summary": one_line(found.summary)}
    except ValidationError as error:
        wrong = one_line(mistakes(error))
        return _unanswered(f"could not be checked: {shown(answer, 60)} is not a certificate ({wrong})")
    except BaseException as error:
        return _unanswered(f"could not be checked: its certificate raised {blame(error)}")


def with_options(name: str, options: Mapping[str, Any]) -> str:
    """How messages call a plugin."""
    return name + (f" ({', '.join(f'{k} = {v}' for k, v in options.items())})" if options else "")


def _not_certified(kind: str, name: str, options: dict[str, Any], *, why: str) -> dict[str, Any]:
    about = {"kind": kind, "name": name, "options": options, "seconds": None}
    return {**_unanswered(f"could not be checked: {why}"), **about}


def _certificate_key(kind: str, name: str, options: dict[str, Any]) -> str:
    return f"{kind}/{name}/{digest([options, registry().find(kind, name).provenance])}"


def of_method(certificates: Mapping[str, dict[str, Any]], method: MethodEntry) -> list[dict[str, Any]]:
    """Those of the plugins that a method is made of."""
    keys = [_certificate_key(*plugin) for plugin in method.plugins()]
    return [certificates[k] for k in keys if k in certificates]


def short(certificates: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The certificate as a record keeps it: the verdict and one line per plugin; all rows are in the folder."""
    if not certificates:
        return None
    verdicts = [c["passed"] for c in certificates]
    passed = False if False in verdicts else None if None in verdicts else True
    return {"passed": passed, "summary": "; ".join(f"{c['name']}: {c['summary']}" for c in certificates)}
