"""Custom operators of torch, in C++ for CPUs and in Triton for GPUs, compiled on first use."""
