"""Fused attention kernels for accelerators."""
