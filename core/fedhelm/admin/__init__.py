"""The admin library: connect to a federation, submit jobs, follow the primary through a failover.

The console is a client of it, and so are scripts and notebooks::

    import fedhelm
    with fedhelm.connect("poc/admin@nvidia.com") as session:
        job = session.submit("hello-pt-tb")
        job.wait()
        print(job.download())

Names are loaded when they are first used, so that importing this package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhelm.admin.follow import Note as Note
    from fedhelm.admin.models import (
        Check as Check,
    )
    from fedhelm.admin.models import (
        Event as Event,
    )
    from fedhelm.admin.models import (
        Explanation as Explanation,
    )
    from fedhelm.admin.models import (
        Failover as Failover,
    )
    from fedhelm.admin.models import (
        Job as Job,
    )
    from fedhelm.admin.models import (
        JobDetail as JobDetail,
    )
    from fedhelm.admin.models import (
        Operated as Operated,
    )
    from fedhelm.admin.models import (
        Primary as Primary,
    )
    from fedhelm.admin.models import (
        Server as Server,
    )
    from fedhelm.admin.models import (
        Shutdown as Shutdown,
    )
    from fedhelm.admin.models import (
        SignedIn as SignedIn,
    )
    from fedhelm.admin.models import (
        Site as Site,
    )
    from fedhelm.admin.models import (
        Status as Status,
    )
    from fedhelm.admin.models import (
        System as System,
    )
    from fedhelm.admin.session import JobHandle as JobHandle
    from fedhelm.admin.session import Session as Session
    from fedhelm.admin.session import connect as connect

__all__ = [
    "Check",
    "Event",
    "Explanation",
    "Failover",
    "Job",
    "JobDetail",
    "JobHandle",
    "Note",
    "Operated",
    "Primary",
    "Server",
    "Session",
    "Shutdown",
    "SignedIn",
    "Site",
    "Status",
    "System",
    "connect",
]

_SESSION = {"JobHandle", "Session", "connect"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = "session" if name in _SESSION else "follow" if name == "Note" else "models"
    return getattr(importlib.import_module(f"fedhelm.admin.{where}"), name)
