"""Operators of our own, for CPUs in C++ and for GPUs in Triton, compiled on first use; what torch must know of them."""
