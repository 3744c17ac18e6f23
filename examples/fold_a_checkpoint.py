"""Fold a trained checkpoint from Python. Usage: python examples/fold_a_checkpoint.py [FOLDER]"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import normfold


def main(folder: Path) -> None:
    """Fold fixtures/vit_un.pt, say what became of each norm, and compare the folded torch module with the original."""
    checkpoint = Path("fixtures/vit_un.pt")
    report = normfold.fold(checkpoint, folder / "vit.onnx")
    for site in report.sites:
        where = ", ".join(site.into) or site.reason
        print(f"{site.name} ({site.kind}): {site.status}, {where}")
    before, after = report.nodes_before, report.nodes_after
    print(f"{sum(before.values())} nodes before, {sum(after.values())} after")

    source = normfold.load_checkpoint(checkpoint)
    assert source.module is not None
    folded = report.to_torch()
    image = torch.rand(1, *(size for size in source.inputs[0].dims if isinstance(size, int)))
    with torch.no_grad():
        difference = (source.module(image) - folded(image)).abs().max().item()
    print(f"the folded torch module differs by {difference:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
