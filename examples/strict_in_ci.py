"""A gate: no model leaves with a norm in it. Usage: python examples/strict_in_ci.py CHECKPOINT OUT.onnx"""

from __future__ import annotations

import sys

import normfold
from normfold.errors import NormfoldError


def main(checkpoint: str, output: str) -> int:
    """The exit code of `normfold fold --strict`, and a line for every norm that stays."""
    try:
        report = normfold.fold(checkpoint, output, strict=True, force=True)
    except NormfoldError as error:
        for site in error.report.unfolded if hasattr(error, "report") else ():
            print(f"{site.name}: {site.code}: {site.reason}", file=sys.stderr)
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{len(report.norms)} norms folded, {report.output.bytes if report.output else 0} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
