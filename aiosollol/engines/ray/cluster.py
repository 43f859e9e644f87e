"""In the sidecar: joins a Ray cluster, or starts one. `ray` is imported only from here on."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aiosollol.core.redaction import redacted
from aiosollol.engines.ray.coordinator import NAMESPACE

START_HINT = "start one with: ray start --head"
LOOPBACK = "127.0.0.1"

_KNOCK_SECONDS = 1.0
# By default Ray gives each node an address that others can reach, even if 127.0.0.1 was requested.
# Turned off, a cluster started here listens on loopback only, and one that listens there is usable.
_REACHABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class Cluster(NamedTuple):
    """The joined cluster. is_own: whether this process started it, so it ends with it."""

    address: str
    is_own: bool
    dashboard: str | None
    version: str


class ClusterGone(Exception):
    """No cluster can be joined. The message contains advice."""


def join(address: str | None) -> Cluster:
    """Join the cluster at `address`; blocks. Raises ClusterGone.

    address: None means the one of `RAY_ADDRESS`, or one started on this machine with `ray start` or
        by this function, else a new one, which later programs on this machine join too. "auto" is
        the same, without a new one.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address not in (None, "auto"):
        return _connect(address)
    named = os.environ.get("RAY_ADDRESS")
    if named and named != "auto":
        return _connect(named)
    if address == "auto":
        found = _find()
        if found is None:
            raise ClusterGone(f"does not run on this machine; {START_HINT}")
        return _connect(found, is_found=True)
    try:
        # One at a time: of several programs started together, the first starts it for all.
        with _alone():
            found = _find()
            return _start() if found is None else _connect(found, is_found=True)
    except OSError as error:
        problem = f"cannot be started so that other programs find it: {error}"
        raise ClusterGone(f"{problem}; {START_HINT}, or name one with ray_address") from error


def _connect(address: str, *, is_found: bool = False) -> Cluster:
    if "://" not in address:
        if not _answers(address):
            raise ClusterGone(f"does not answer at {redacted(address)}; {START_HINT}")
        host = address.rpartition(":")[0]
        if host.startswith("127.") or host in ("localhost", "[::1]"):
            os.environ.setdefault(_REACHABLE, "0")
        if is_found and _has_token():
            # As Ray does for a cluster that it finds itself.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    elif not _answers(address.partition("://")[2], 10001):
        raise ClusterGone(
            f"does not answer at {redacted(address)}; {START_HINT}, which listens on port 10001"
        )
    return _init(address, is_own=False)


def _start() -> Cluster:
    os.environ.setdefault(_REACHABLE, "0")
    cluster = _init("local", is_own=True, _node_ip_address=LOOPBACK, include_dashboard=False)
    told = {"address": cluster.address, "pid": os.getpid()}
    path = _told_path()
    whole = path.with_suffix(f".{os.getpid()}")
    whole.write_text(json.dumps(told), encoding="utf-8")
    whole.replace(path)
    return cluster


def _init(address: str, *, is_own: bool, **options: Any) -> Cluster:
    try:
        import ray

        context = ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )
        known = getattr(context, "address_info", None) or {}
        where = known.get("gcs_address") or known.get("address") or address
        url = getattr(context, "dashboard_url", None)
    except (Exception, SystemExit) as error:
        # Ray raises all kinds: ConnectionError, RuntimeError for a version mismatch, ...
        text = " ".join(str(error).split()) or type(error).__name__
        if "ersion mismatch" in text:
            text += "; use the same versions of Python and Ray in all programs and on all machines"
        if isinstance(error, ImportError) and "://" in address:
            text += "; pip install 'ray[client]'"
        raise ClusterGone(f"at {redacted(address)} cannot be used: {text}") from error
    return Cluster(where, is_own, f"http://{url}" if url else None, ray.__version__)


def leave(cluster: Cluster) -> None:
    """Leave the cluster. One started here ends."""
    if cluster.is_own:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(_told_path().read_text("utf-8"))["address"] == cluster.address:
                _told_path().unlink()
    import ray

    ray.shutdown()


# Finding a running cluster.


def _find() -> str | None:
    """The address of a cluster on this machine that answers, from `ray start` or `_start`."""
    for address in (_started_by_ray(), _started_by_us()):
        if address and _answers(address):
            return address
    return None


def _started_by_ray() -> str:
    """The address that `ray start` has written, in the file that the docs of `ray.init` name.

    Ray's "auto" also takes clusters from the machine's list of processes, of any user and version.
    """
    folder = os.environ.get("RAY_TMPDIR")
    if folder is None and sys.platform.startswith("linux"):
        folder = os.environ.get("TMPDIR")
    try:
        return Path(folder or "/tmp", "ray", "ray_current_cluster").read_text("utf-8").strip()
    except OSError:
        return ""


def _started_by_us() -> str:
    try:
        address = json.loads(_told_path().read_text("utf-8"))["address"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(address)


def _told_path() -> Path:
    # By user, as a cluster admits no other; by machine, as home folders may be shared.
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root, "aiosollol")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"ray-{socket.gethostname()}.json"


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A lock that one process of this user on this machine can hold."""
    try:
        import fcntl
    except ImportError:  # Windows: two programs started at once may start two clusters
        yield
        return
    with open(_told_path().with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it however this process ends
        yield


def _answers(address: str, usual_port: int = 6379) -> bool:
    """Whether a server listens there. Ray itself would try for 20 s or more."""
    netloc = address.partition("/")[0]
    host, colon, port = netloc.rpartition(":")
    if not colon:
        host, port = netloc, str(usual_port)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    return Path.home().joinpath(".ray", "auth_token").exists()
