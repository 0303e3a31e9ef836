"""The students once more, as fused kernels: the same functions as mlffd/students, checked against them."""
