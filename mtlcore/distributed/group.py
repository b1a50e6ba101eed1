"""Which processes work together: what the user said, and what is there."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from mtlcore.errors import ConfigurationError


def checked(wish: Any) -> Any:
    """What was given as ``process_group``, if it can be one: "auto", None, a ``ProcessGroup``, or one dimension of a
    ``DeviceMesh``. Whether it is there is seen in the first step.

    Raises:
        ConfigurationError: something else, or a mesh of several dimensions.
    """
    if wish is None or wish == "auto":
        return wish
    if dist.is_available():
        from torch.distributed.device_mesh import DeviceMesh

        if isinstance(wish, DeviceMesh):
            if wish.ndim != 1:
                names: tuple[object, ...] = wish.mesh_dim_names or tuple(range(wish.ndim))
                raise ConfigurationError(
                    f"process_group is a DeviceMesh of {wish.ndim} dimensions ({', '.join(map(str, names))}): give "
                    f"the one along which the batch is split, such as mesh[{names[0]!r}]."
                )
            return wish
        if isinstance(wish, dist.ProcessGroup):
            return wish
        if wish is dist.GroupMember.NON_GROUP_MEMBER:
            raise ConfigurationError(
                "process_group is a group that this process is no member of (new_group returns it to all others): make "
                "the MultiTask on the members only, or give each process the group that it is in."
            )
    raise ConfigurationError(
        f'process_group must be "auto", None, a torch.distributed.ProcessGroup or one dimension of a DeviceMesh; '
        f"found {wish!r}."
    )


def resolved(wish: Any) -> dist.ProcessGroup | None:
    """The group of more than one process that ``wish`` stands for right now; None where there is none."""
    if wish is None or not (dist.is_available() and dist.is_initialized()):
        return None
    if wish == "auto":
        group: Any = dist.group.WORLD
    else:
        group = wish if isinstance(wish, dist.ProcessGroup) else wish.get_group()
    return group if group is not None and dist.get_world_size(group) > 1 else None
