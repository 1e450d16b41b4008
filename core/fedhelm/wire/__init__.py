"""The network: gRPC services and their clients, bulk transfers, the overseer's API.

Importing this package sets what must be set before grpc is imported.
"""

from __future__ import annotations

import os
import sys

__all__ = ["TLS_1_3_ONLY"]

# gRPC's Python API cannot forbid TLS 1.2. This suite needs an RSA certificate, ours are ECDSA: only 1.3 is left.
_SUITE = "ECDHE-RSA-AES128-GCM-SHA256"

TLS_1_3_ONLY = "grpc._cython.cygrpc" not in sys.modules or os.environ.get("GRPC_SSL_CIPHER_SUITES") == _SUITE
"""False where grpc was imported first: it reads its environment once, then. Servers refuse to start so."""

os.environ["GRPC_SSL_CIPHER_SUITES"] = _SUITE
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
