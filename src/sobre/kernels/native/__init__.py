"""Kernels in C for what a CPU does between its matrix products; compiled once on this machine, by its own compiler."""
