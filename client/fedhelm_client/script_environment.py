"""Which variables of the agent's environment a job's script gets: those that programs need, and those the site names.

The agent's environment may hold a database's password, a cloud's credentials, a token: whoever starts it put them there
for something else. So a script gets what is listed here. Proxies are not: their URLs may carry a password.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

__all__ = ["script_environment"]

_NAMES: Final = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "HOSTNAME", "TERM", "LANG", "LANGUAGE", "TZ", "TZDIR"),
        *("TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHON_CPU_COUNT", "PYTHON_GIL"),
        *("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "TORCH_HOME", "HF_HOME", "MPLCONFIGDIR"),
        *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE"),
        *("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "VECLIB_MAXIMUM_THREADS"),
        *("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS", "TF_FORCE_GPU_ALLOW_GROWTH"),
    )
)

_FAMILIES: Final = re.compile(
    r"PYTHON[A-Z0-9]*|LC_[A-Z]+|(CUDA|CUBLAS|CUDNN|NCCL|GLOO|OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|NUMEXPR|PYTORCH)_[A-Z0-9_]+"
)
"""Of the interpreter, the language, and libraries that calculate. No makers' names: ``NVIDIA_API_KEY`` is a secret."""


def script_environment(environ: Mapping[str, str], more: Collection[str] = ()) -> dict[str, str]:
    """Return what a script gets of ``environ``. Pure.

    Args:
        environ: the agent's.
        more: names that the site adds.
    """
    return {
        name: value for name, value in environ.items() if name in _NAMES or name in more or _FAMILIES.fullmatch(name)
    }
