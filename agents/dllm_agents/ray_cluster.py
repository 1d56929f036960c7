"""One way to Ray's cluster for everything here that uses one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def ray_cluster(
    address: str | None, *, local_cpus: int, cpus: float, gpus: float, who: str
) -> Iterator[None]:
    """Connects to Ray: as it already runs in this program, else to a cluster, else to one of its own.

    Args:
        address: The cluster's, ``auto`` for one that runs on this machine; ``None`` or ``local`` begins one
            here, which ends with the block.
        local_cpus: How many CPUs that one counts; they are a count that Ray keeps, no limit.
        cpus: How many will be asked for.
        gpus: Likewise.
        who: Asks for them, for the message.

    Raises:
        ConnectionError: If there is no cluster at the address.
        ValueError: If the cluster lacks what will be asked for, for which Ray would wait for ever.
    """
    ours = not ray.is_initialized()
    if ours and address not in (None, "local"):
        ray.init(address=address, logging_level="warning")
    elif ours:
        ray.init(address="local", num_cpus=local_cpus, include_dashboard=False, logging_level="warning")
    try:
        there = ray.cluster_resources()
        for name, needed in (("CPU", cpus), ("GPU", gpus)):
            if there.get(name, 0) < needed:
                raise ValueError(
                    f"{who} need {needed:g} {name}s in all, Ray's cluster has {there.get(name, 0):g}"
                )
        yield
    finally:
        if ours:
            ray.shutdown()
