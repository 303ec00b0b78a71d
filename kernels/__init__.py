"""Triton kernels, and in ``cpu/`` numba kernels. Nothing is imported here: neither needs the other's compiler."""
