"""What is to become of a checkpoint: one value, from the command line to the graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from normfold.errors import UsageError
from normfold.export.targets import check_target
from normfold.export.tasks import Task, check_task, places
from normfold.pipeline.early import check_dtype
from normfold.system.numbers import HALF


@dataclass(frozen=True, slots=True)
class FoldOptions:
    """What a user may say of a fold.

    What is made. task: what to export: the model's forward, a decoder with its key-value cache, or an encoder-decoder
    as two files named after the output (OUT.onnx: OUT.encoder.onnx, OUT.decoder.onnx); see export/parts.py. opset: by
    default the fastest for `target`. target: what the model is to run on, by default the onnxruntime that is installed
    (export/opset.py). dtype: float16 converts the folded graph at the end,
    inputs and outputs too (graph/float16.py); the default keeps the types of the source. calibrate: npz files of real
    inputs that show what float16 has to hold (analysis/frames/powers.py), or what norms read (`fixed_statistics`); by
    default inputs are drawn.

    What is folded. norm_affine: the weight and bias of LayerNorm and RMSNorm too. center: that, and RMSNorm made out of
    LayerNorm wherever its stream can do without the mean (rewrite/centre.py). only: names of the norms to fold
    (Report.sites), by default all. keep_tied: nothing that would need a second copy of a weight that several operators
    read, such as a tied embedding. equalize: the scales that are still free between weights are chosen so that their
    ranges balance, for int8 (analysis/frames/equalize.py). fixed_statistics: LayerNorm and RMSNorm too where the
    epsilon dwarfs every variance that they are seen to read (analysis/fixed.py).

    What is written. dry_run: nothing. strict: nothing, unless every norm with stored statistics folds. verify: nothing
    that differs from the source. report, html: where to write R.json, and a page to look at (also when `strict` or the
    verification fails). emit_torch: where to write the folded torch module, pickled, beside the output. external_data:
    the weights into a file beside the output even where they fit into it (graph/write.py). force: over files that
    exist.

    Raises UsageError for options that contradict each other or do not exist.
    """

    task: Task = "forward"
    opset: int | None = None
    target: str | None = None
    dtype: str | None = None
    calibrate: tuple[Path, ...] = ()
    norm_affine: bool = False
    center: bool = False
    only: tuple[str, ...] = ()
    keep_tied: bool = False
    equalize: bool = False
    fixed_statistics: bool = False
    dry_run: bool = False
    strict: bool = False
    verify: bool = True
    report: Path | None = None
    html: Path | None = None
    emit_torch: Path | None = None
    external_data: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        check_task(self.task)
        check_target(self.target)
        if self.calibrate and not (self.half or self.fixed_statistics):
            raise UsageError(
                "--calibrate shows what float16 has to hold, or what norms read: it goes with --dtype float16 or "
                "--fixed-statistics"
            )
        if self.fixed_statistics and self.half:
            raise UsageError(
                "--fixed-statistics is measured in the types of the source; leave out --dtype float16, and fold the "
                "result again with it"
            )
        if self.fixed_statistics and self.emit_torch is not None:
            raise UsageError("--fixed-statistics changes the graph alone, not the module; leave out --emit-torch")
        if check_dtype(self.dtype) is not None and self.emit_torch is not None:
            raise UsageError(f"--emit-torch writes the module in its own precision; leave out --dtype {self.dtype}")

    def written(self, output: Path) -> tuple[Path, ...]:
        """The files that are asked for beside the report: the graphs of the task, and the torch module."""
        module = () if self.emit_torch is None else (self.emit_torch,)
        return (*places(output, self.task), *module)

    @property
    def reports(self) -> tuple[Path, ...]:
        """The reports that are asked for."""
        return tuple(filter(None, (self.report, self.html)))

    @property
    def half(self) -> bool:
        """Whether the result is float16."""
        return self.dtype == HALF

    @property
    def affine(self) -> bool:
        """Whether the weight and bias of norms with statistics of the token are folded."""
        return self.norm_affine or self.center
