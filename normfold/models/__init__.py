"""Built-in architectures, by name: `create("vit", norm="un", ...)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normfold.models.registry import create, names

__all__ = ["create", "names"]


def __getattr__(name: str) -> Any:
    # Resolved on first use: the catalogue, which lists them, needs no torch.
    if name in __all__:
        from normfold.models import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
