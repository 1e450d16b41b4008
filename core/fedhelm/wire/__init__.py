"""The network: gRPC services and their clients, bulk transfers, the overseer's API.

Importing this package sets what must be set before grpc is imported.
"""

from __future__ import annotations

import os

# gRPC's Python API cannot forbid TLS 1.2. This suite needs an RSA certificate, ours are ECDSA: only 1.3 is left.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
