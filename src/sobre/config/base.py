"""The decorator of every configuration class: frozen, keyword-only, unknown keys refused. No torch here."""

from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

try:
    from pydantic import Field
except ModuleNotFoundError:  # models compute without it, as on a bare machine with a GPU; decoding a recipe does not
    by_kind: Any = None
else:
    by_kind = Field(discriminator="kind")
"""In `Annotated[A | B, by_kind]`: the field `kind` says which class is decoded."""

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make `cls` a configuration: a frozen keyword-only dataclass that pydantic decodes strictly."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)
