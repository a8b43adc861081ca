"""PEFT, imported so that nothing is fetched on the way."""

import logging
import sys

# PEFT imports bitsandbytes. On CPUs with AVX512-BF16 that fetches a kernel from the model hub as it is imported, if
# the package `kernels` is there, and else warns that it could not. No code from the hub runs here.
_kernels, _log = sys.modules.get("kernels"), logging.getLogger("bitsandbytes")
_level = _log.level
_log.setLevel(logging.ERROR)
sys.modules["kernels"] = None  # type: ignore[assignment]  # makes its import fail

import peft as peft  # noqa: E402

_log.setLevel(_level)
del sys.modules["kernels"]
if _kernels is not None:
    sys.modules["kernels"] = _kernels
