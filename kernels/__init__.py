"""Triton kernels, and numba kernels in ``cpu/``.

``gbm``, ``rotation``, ``ring`` and ``optim`` define the operations. The other modules hold the
device functions that they share. Nothing is imported here, so that neither set of kernels needs the
other's compiler.
"""
