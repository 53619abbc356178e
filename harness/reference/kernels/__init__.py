"""Operators of our own for CPUs: C++ that is compiled on first use, and what torch must know of it."""
