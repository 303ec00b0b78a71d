"""Numba kernels for the CPU, with the signatures of ``fastmsgm.reference``.

Their loops are SIMD code, and each thread works on a range of samples at a time. Nothing is
imported here: operator dispatch imports the module of a family when it needs it.
"""
