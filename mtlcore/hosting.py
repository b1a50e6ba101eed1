"""For programs that ask the plugins of others: a verifier, a benchmark, a dashboard of your own.

* Who there is: :func:`registry`, :class:`Entry`, ``BUILT_IN``; what a plugin declares wrongly: :func:`declared_fault`;
  where its code lies: :func:`spec_without_import`.
* To ask one: :func:`ask` checks what comes back, :func:`step_seed` is the seed of a step's random stream.
* What plugins raise: :func:`interrupted_by_user` tells a Ctrl-C from an exception of theirs, :func:`blame` names the
  culprit, :func:`described` and :func:`one_line` write the exception, :func:`shown` a value of any kind, and
  :func:`plain` takes control characters out.
* What they take: :func:`limited` and :class:`TookTooLong`, :func:`allowed`, and :func:`waiting`, which says after
  ``PATIENCE`` seconds for whom one waits.
* What they may change: :class:`Snapshot`, :func:`copied_buffers`, :class:`Noise`, :class:`Structure`;
  :func:`interrupts_held`.
* What a person or a program reads: :func:`table`, :func:`cell`, :func:`console`; :func:`as_json`, and
  :func:`own_stdout`, which keeps what plugins print out of it; for the file that it goes to, :func:`check_writable` and
  :func:`to_stdout`. :func:`complete_names` and :func:`complete_laws` for the shell.

Names are imported on first use, as those of :mod:`mtlcore`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtlcore.lazily import imported

if TYPE_CHECKING:
    from mtlcore.asking import aggregator as _aggregator
    from mtlcore.asking.seeds import step_seed as step_seed
    from mtlcore.cli import complete_laws as complete_laws
    from mtlcore.cli import complete_names as complete_names
    from mtlcore.discovery import BUILT_IN as BUILT_IN
    from mtlcore.output import as_json as as_json
    from mtlcore.output import cell as cell
    from mtlcore.output import check_writable as check_writable
    from mtlcore.output import console as console
    from mtlcore.output import own_stdout as own_stdout
    from mtlcore.output import table as table
    from mtlcore.output import to_stdout as to_stdout
    from mtlcore.patience import PATIENCE as PATIENCE
    from mtlcore.patience import TookTooLong as TookTooLong
    from mtlcore.patience import allowed as allowed
    from mtlcore.patience import limited as limited
    from mtlcore.patience import waiting as waiting
    from mtlcore.registry import Entry as Entry
    from mtlcore.registry import registry as registry
    from mtlcore.safety import blame as blame
    from mtlcore.safety import described as described
    from mtlcore.safety import interrupted_by_user as interrupted_by_user
    from mtlcore.safety import one_line as one_line
    from mtlcore.safety import plain as plain
    from mtlcore.safety import shown as shown
    from mtlcore.snapshot import Noise as Noise
    from mtlcore.snapshot import Snapshot as Snapshot
    from mtlcore.snapshot import Structure as Structure
    from mtlcore.snapshot import copied_buffers as copied_buffers
    from mtlcore.snapshot import interrupts_held as interrupts_held
    from mtlcore.soundness import declared_fault as declared_fault
    from mtlcore.soundness import spec_without_import as spec_without_import

    ask = _aggregator.call

_HOME = {
    **dict.fromkeys(("complete_laws", "complete_names"), "mtlcore.cli"),
    **dict.fromkeys(("as_json", "cell", "check_writable", "console", "own_stdout"), "mtlcore.output"),
    **dict.fromkeys(("table", "to_stdout"), "mtlcore.output"),
    **dict.fromkeys(("PATIENCE", "TookTooLong", "allowed", "limited", "waiting"), "mtlcore.patience"),
    **dict.fromkeys(("Entry", "registry"), "mtlcore.registry"),
    **dict.fromkeys(("blame", "described", "interrupted_by_user", "one_line", "plain", "shown"), "mtlcore.safety"),
    **dict.fromkeys(("Noise", "Snapshot", "Structure", "copied_buffers", "interrupts_held"), "mtlcore.snapshot"),
    **dict.fromkeys(("declared_fault", "spec_without_import"), "mtlcore.soundness"),
    "BUILT_IN": "mtlcore.discovery",
    "ask": "mtlcore.asking.aggregator:call",
    "step_seed": "mtlcore.asking.seeds",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    return imported(__name__, _HOME)(name)
