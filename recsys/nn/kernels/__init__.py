"""Compiled loops for the CPU (numba), each beside a torch form of the same numbers."""
