"""Triton kernels of the GPU's path, one mechanism a file, each beside its slow readable twin.

All of them capture in a CUDA graph: a grid depends on shapes alone, lengths and tables are read
from the device, nothing waits for the host. A padding row has length 0 and slot −1. Configurations
are fixed, chosen by measurement for each class of shapes: tuning at run time would compile for
minutes.
"""
