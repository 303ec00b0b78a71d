"""Triton kernels run in its interpreter, on CPU tensors: the switch must be set before triton's first import.

torch 2.11's compiler warns of itself when this part of it is imported, which must not count as a warning of ours.
"""

import os
import warnings

os.environ["TRITON_INTERPRET"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch.utils.mkldnn  # noqa: F401
