"""One architecture under every norm, each by its own name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

Build = Callable[..., nn.Module]


def norm_variants(
    stem: str, build: Build, *, ln_eps: float = 1e-5, steps: int = 300000, prepbn: str = "prepbn", plain: str = ""
) -> Mapping[str, Build]:
    """Rows for the registry: STEM_ln, STEM_bn, STEM_un, STEM_repbn and STEM_prepbn.

    build: takes `norm` and `norm_args`. ln_eps: of the LayerNorm, also of the one that PRepBN fades from over `steps`.
    prepbn: "repbn" where the file published as STEM_prepbn holds RepBN without the schedule; STEM_repbn is left out
    then, being the same. plain: the kind whose name is STEM alone.
    """
    norms: dict[str, dict[str, Any]] = {
        "ln": {"norm": "ln", "norm_args": {"eps": ln_eps}},
        "bn": {"norm": "bn"},
        "un": {"norm": "un"},
        "repbn": {"norm": "repbn"},
        "prepbn": {"norm": "prepbn", "norm_args": {"base_eps": ln_eps, "steps": steps}},
    }
    if prepbn == "repbn":
        norms["prepbn"] = norms.pop("repbn")
    return {stem if kind == plain else f"{stem}_{kind}": partial(build, **options) for kind, options in norms.items()}
