"""Triton kernels run in its interpreter, on CPU tensors: the switch must be set before triton's first import."""

import os

os.environ["TRITON_INTERPRET"] = "1"
