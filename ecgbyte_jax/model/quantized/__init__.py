"""Frozen kernels in few bits: the number formats, and the kernel that a linear map holds instead of floats."""
