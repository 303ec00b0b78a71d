"""Triton kernels, and in ``cpu/`` numba kernels. Nothing is imported here: neither needs the other's compiler.

``gbm``, ``rotation``, ``ring`` and ``optim`` are the operations; the other modules hold device functions they share.
"""
