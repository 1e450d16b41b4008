"""Imported before every test: grpc reads its environment when it is imported, whoever imports it first."""

from __future__ import annotations

import fedhelm.wire

assert fedhelm.wire.TLS_1_3_ONLY
