"""Built-in architectures, by name: `create("vit", norm="un", ...)`."""

from __future__ import annotations

from normfold.models.registry import create, names

__all__ = ["create", "names"]
