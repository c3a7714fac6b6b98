"""The families that load and leave. To add one: a page beside this one, and a line here."""

from sobre.models.families import deepseek_v3, llama
from sobre.models.families.base import Family

FAMILIES: tuple[Family, ...] = (deepseek_v3.FAMILY, llama.LLAMA, llama.QWEN2, llama.QWEN3)
