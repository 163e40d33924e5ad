"""Options of `vesalius serve` for Ray Serve: several replicas of the server, on this machine or on a cluster."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from foundation.errors import InvalidRequest

if TYPE_CHECKING:
    from serving.cluster import ClusterConfig

_ALONE = ("replicas", "replica_cpus", "replica_gpus")


def add_cluster(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cluster", action="store_true", help="serve through Ray Serve (the extra `ray`); see docs/cluster.md"
    )
    command.add_argument("--replicas", type=int, metavar="N", help="how many servers stand behind one address (1)")
    command.add_argument("--replica-cpus", type=int, metavar="N", help="cores of each (all of this machine, divided)")
    command.add_argument("--replica-gpus", type=float, metavar="N", help="GPUs of each, or a part of one (0)")


def cluster_config(chosen: argparse.Namespace) -> ClusterConfig | None:
    """What was chosen; None without --cluster. Raises InvalidRequest for an option that means nothing without it."""
    given = {name: getattr(chosen, name) for name in _ALONE if getattr(chosen, name) is not None}
    if not chosen.cluster:
        for name in given:
            option = "--" + name.replace("_", "-")
            raise InvalidRequest(f"{option} says how a cluster serves; give --cluster with it.", param=name)
        return None
    if chosen.workers != 1:
        raise InvalidRequest("--cluster serves by --replicas, each with one front; leave --workers out.", param="workers")
    from serving.cluster import ClusterConfig

    return ClusterConfig(**given)
