"""The names of devices, as a recipe or a flag says them. No torch here."""

from typing import Literal, get_args

Device = Literal["auto", "cpu", "cuda", "mps", "npu", "xpu"]
"""auto is the accelerator if there is one, else the CPU; cuda is NVIDIA's and AMD's (ROCm), npu
Ascend's, xpu Intel's."""
DEVICES: tuple[str, ...] = get_args(Device)[1:]
