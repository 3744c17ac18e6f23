"""Files of strangers that are made to break their reader: a sentence, at once, and no memory for what they claim."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors.torch
import torch

from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.save import save_checkpoint
from normfold.cli.terminal import json_object
from normfold.errors import ArchitectureError, CheckpointError, GraphError, InputSpecError, NormfoldError, UsageError
from normfold.inputs.cases import read_cases
from normfold.inputs.spec import parse_specs
from normfold.models import create
from normfold.system.plain import parse_json
from normfold.verify.manifest import read_manifest
from normfold.verify.source import find_source
from tests.checkpoint.test_authors_files import state_of

SPECS = parse_specs(["x:float32[B,3]"])
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5_000
BAD_JSON = [DEEP, LONG, f'{{"depth": {LONG}}}', f'{{"depth": {DEEP}}}', '{"depth": -' + "1" * 21 + "}", "{", "\ud800"]


@pytest.mark.parametrize("text", BAD_JSON, ids=range(len(BAD_JSON)))
def test_json_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200 and "sys." not in str(caught.value)
    with pytest.raises(UsageError, match="--model-args is not JSON"):
        json_object(text)
    state = state_of("llama_350m_rms", vocab=40, dim=16, depth=1, heads=2, hidden=24)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        load_checkpoint(tmp_path)
    if text.isascii():
        for key in ("arch_args", "inputs"):
            path = tmp_path / "c.safetensors"
            safetensors.torch.save_file(state, path, metadata={"arch": "llama_350m_rms", key: text})
            with pytest.raises(CheckpointError, match="in its metadata must be JSON"):
                load_checkpoint(path)


def test_json_that_is_deep_and_large_enough() -> None:
    nested = json.loads("[" * 40 + "]" * 40)
    assert parse_json(json.dumps(nested)) == nested
    assert parse_json(f"[{2**63}, 1e-8]") == [2**63, 1e-8]
    assert json_object('{"depth": 12}') == {"depth": 12}
    with pytest.raises(UsageError, match="has to be a JSON object"):
        json_object("[1]")


@pytest.mark.parametrize(
    "args",
    [{"depth": 10**500}, {"depth": [[]] * 5000}, {"depth": {1: 2}}, {"depth": "x" * 5000}, {"depth": float("nan")}],
)
def test_arguments_in_a_file_that_no_option_can_be(tmp_path: Path, args: dict[str, Any]) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "arch": "vit", "arch_args": args}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="its arch_args are not numbers, short strings"):
        load_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize(
    "args", [{"depth": 10**9}, {"depth": 10**6}, {"classes": 10**9}, {"dim": 3 * 10**6}, {"heads": -1}, {"heads": 0}]
)
def test_arguments_of_a_network_that_would_fill_the_memory(tmp_path: Path, args: dict[str, Any]) -> None:
    """The file is a few kilobytes; a network is built only when it fits it."""
    torch.save({"state_dict": state_of("vit", depth=1), "arch": "vit", "arch_args": args}, tmp_path / "c.pt")
    with pytest.raises(ArchitectureError, match=r"cannot be built|many times the layers|does not fit"):
        load_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (torch.zeros(1).expand(10**12), "claims 1000000000000 elements and the file holds 1"),
        (torch.zeros(3, device="meta"), "without values"),
        (torch.eye(3).to_sparse(), "sparse or quantized"),
    ],
)
def test_tensors_that_are_no_weights(tmp_path: Path, tensor: torch.Tensor, complaint: str) -> None:
    torch.save({"a": torch.ones(2), "b": tensor}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=rf"b .*{complaint}"):
        load_checkpoint(tmp_path / "c.pt")


# --- what is no file -----------------------------------------------------------------------------------------------


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def unix_socket(path: Path) -> Path:
    # A path of a socket is short; the link is not.
    place = Path(f"/tmp/normfold-{os.getpid()}.sock")
    place.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(place))
        path.symlink_to(place)
    return path


def device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("make", [pipe, unix_socket, device])
@pytest.mark.parametrize("name", ["c.pt", "c.onnx", "c.safetensors", "c.pt2"])
def test_pipes_sockets_and_devices_end_at_once(tmp_path: Path, make: Callable[[Path], Path], name: str) -> None:
    path = make(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"it is a (named pipe|socket|device), not a file"):
        load_checkpoint(path)
    with pytest.raises(InputSpecError, match=r"it is a (named pipe|socket|device), not a file"):
        read_cases([path], SPECS, count=1)


@pytest.mark.parametrize("make", [pipe, device])
def test_a_folder_of_pipes(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="is a directory without"):
        load_checkpoint(tmp_path)
    make(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "s.safetensors"}}')
    make(tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match=r"s\.safetensors is missing"):
        load_checkpoint(tmp_path)


def test_external_data_that_is_a_pipe(tmp_path: Path) -> None:
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) '
                                    "<float[2] w = {1, 2}> { y = Add(x, w) }")  # fmt: skip
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for location in ("pipe", "n" * 300):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        onnx.save(model, tmp_path / "m.onnx")
        (tmp_path / "pipe").exists() or pipe(tmp_path / "pipe")
        with pytest.raises(GraphError, match="is missing"):
            load_checkpoint(tmp_path / "m.onnx")


# --- names ---------------------------------------------------------------------------------------------------------

NAMES = ["n" * 252 + ".pt", "n" * 300 + ".pt", "é" * 130 + ".onnx", "a\0b.pt", "d" * 256 + "/c.safetensors"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(NormfoldError, match=r"no such file|cannot be read"):
        load_checkpoint(tmp_path / name)
    with pytest.raises(InputSpecError, match="cannot be read"):
        read_cases([tmp_path / name], SPECS, count=1)


def test_a_name_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 252 + ".pt")
    args = {"dim": 12, "depth": 1, "heads": 2}
    save_checkpoint(path, create("vit", **args), arch="vit", arch_args=args, example_input=torch.zeros(2, 1, 8, 8))
    assert load_checkpoint(path).arch == "vit"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".pt", ".onnx", ".safetensors"])
def test_a_name_that_is_not_utf8(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode())
    path.write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="its name is not UTF-8"):
        load_checkpoint(path)


# --- npz files -----------------------------------------------------------------------------------------------------


def whole(path: Path) -> None:
    np.savez(path, x=np.ones((2, 3), np.float32))


def compressed_as(method: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        whole(path)
        data = bytearray(path.read_bytes())
        for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            data[data.index(signature) + offset :][:2] = struct.pack("<H", method)
            place = data.index(signature) + offset
            data[place : place + 2] = struct.pack("<H", method)
        path.write_bytes(bytes(data))

    return write


def encrypted(path: Path) -> None:
    whole(path)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(bytes(data))


def truncated(path: Path) -> None:
    whole(path)
    path.write_bytes(path.read_bytes()[:-40])


def with_header(header: bytes, body: bytes = b"") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        text = header + b" " * (-len(header) % 64) + b"\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)

    return write


def damaged_stream(path: Path) -> None:
    np.savez_compressed(path, x=np.arange(6, dtype=np.float32).reshape(2, 3))
    data = bytearray(path.read_bytes())
    for place in range(60, 75):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))


def claims(shape: str, dtype: str = "<f4", body: bytes = b"") -> Callable[[Path], None]:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    return with_header(header.encode(), body)


NPZ: list[tuple[str, Callable[[Path], None], str]] = [
    ("encrypted", encrypted, "is encrypted, password required"),
    ("truncated", truncated, "File is not a zip file"),
    ("unknown compression", compressed_as(77), "compression method is not supported"),
    ("damaged stream", damaged_stream, "no npz file"),
    ("terabytes", claims("(1099511627776, 3)"), "claims 3298534883328 elements"),
    ("more than it holds", claims("(200, 3)", body=b"\0" * 8), "claims 600 elements, which are more than it holds"),
    ("a little more than it holds", claims("(2, 3)", body=b"\0" * 8), "EOF: reading array data"),
    ("nothing, often", claims("(1099511627776,)", "<V0"), "claims 1099511627776 elements"),
    ("negative", claims("(-2, 3)", body=b"\0" * 24), "no npz file"),
    ("objects", claims("(2, 3)", "|O", b"\0" * 48), "holds objects"),
    ("no header", with_header(b"x" * 100), "no npz file"),
    ("deep header", with_header(b"(" * 9000), "no npz file"),
    ("not npy", lambda path: zipfile.ZipFile(path, "w").writestr("x.npy", b"hello there"), "no npz file"),
    ("text", lambda path: path.write_text("hello"), "no npz file"),
    ("empty", lambda path: path.write_bytes(b""), "no npz file"),
    ("a folder", lambda path: path.mkdir(), "Is a directory"),
]


@pytest.mark.parametrize(("write", "complaint"), [row[1:] for row in NPZ], ids=[row[0] for row in NPZ])
def test_npz_files_that_are_none(tmp_path: Path, write: Callable[[Path], None], complaint: str) -> None:
    path = tmp_path / "x.npz"
    write(path)
    with pytest.raises(InputSpecError, match=complaint) as caught:
        read_cases([path], SPECS, count=4)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_npz_files_that_are_some(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", x=np.asfortranarray(x), other=np.array([None]))
        cases = read_cases([tmp_path / "x.npz"], SPECS, count=4)
        assert [case.feeds["x"].tolist() for case in cases] == [[row] for row in x.tolist()]


# --- manifests -----------------------------------------------------------------------------------------------------

MANIFEST: dict[str, Any] = {
    "version": "1", "source": {"name": "c.pt", "path": "c.pt", "sha256": "0" * 64}, "arch": None, "arch_args": {},
    "inputs": [], "sites": [], "outputs": None,
}  # fmt: skip


def model_with(text: str) -> ir.Model:
    model = ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
        )
    )
    model.metadata_props["normfold"] = text
    return model


SPOILED: list[dict[str, Any]] = [
    {"source": {**MANIFEST["source"], "path": 5}},
    {"source": {**MANIFEST["source"], "name": None}},
    {"source": {**MANIFEST["source"], "sha256": ["0"]}},
    {"source": "c.pt"},
    {"arch": 7},
    {"arch_args": [1]},
    {"inputs": [3]},
    {"inputs": 3},
    {"sites": [{"name": 3, "status": "folded"}]},
    {"sites": 3},
    {"task": []},
    {"task": "no such"},
    {"graph": {"a": 1}},
    {"dtype": 16},
    {"load": 3},
    {"outputs": {"seeds": 1e400}},
    {"outputs": [1]},
]


@pytest.mark.parametrize("change", SPOILED)
def test_a_manifest_that_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(GraphError, match=r"its manifest .* is not one that normfold writes"):
        read_manifest(model_with(json.dumps({**MANIFEST, **change})), Path("m.onnx"))


@pytest.mark.parametrize("text", [DEEP, LONG, "[]", "null", "3", ""])
def test_a_manifest_that_is_no_json(text: str) -> None:
    with pytest.raises(GraphError, match="its manifest"):
        read_manifest(model_with(text), Path("m.onnx"))


def place_of(model: Path, path: str | None, name: str = "none.pt", sha256: str = "0" * 64) -> Path | None:
    source = {"name": name, "path": path, "sha256": sha256}
    manifest = read_manifest(model_with(json.dumps({**MANIFEST, "source": source})), model)
    assert manifest is not None
    return find_source(model, manifest)


def test_a_manifest_reads_no_file_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "model"
    (inside / "below").mkdir(parents=True)
    (tmp_path / "secret.pt").write_bytes(b"secret")
    (inside / "link.pt").symlink_to("../secret.pt")
    (inside / "up").symlink_to("..")
    (inside / "loop.pt").symlink_to("loop.pt")
    pipe(inside / "pipe.pt")
    device(inside / "zero.pt")
    monkeypatch.setattr("normfold.verify.source.sha256_of", lambda path: pytest.fail(f"{path} was read"))
    bad = [
        "../secret.pt",
        "below/../../secret.pt",
        str(tmp_path / "secret.pt"),
        "link.pt",
        "up/secret.pt",
        "..\\secret.pt",
    ]
    bad += ["loop.pt", "pipe.pt", "zero.pt", "", ".", "n" * 300, "a\0b", "below/x/../../../secret.pt"]
    for path in bad:
        assert place_of(inside / "m.onnx", path) is None, path
        assert place_of(inside / "m.onnx", None, name=path) is None, path


def test_no_digest_of_another_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(b"another file")
    digest = hashlib.sha256(b"another file").hexdigest()
    with pytest.raises(CheckpointError, match=r"is not the file that .* was made from") as caught:
        place_of(tmp_path / "m.onnx", "c.pt")
    assert digest[:6] not in str(caught.value)
    assert place_of(tmp_path / "m.onnx", "c.pt", sha256=digest) == tmp_path / "c.pt"
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.pt").write_bytes(b"another file")
    assert place_of(tmp_path / "m.onnx", "below/c.pt", sha256=digest) == tmp_path / "below" / "c.pt"


def test_the_command_line_ends_at_once(tmp_path: Path) -> None:
    """No process is left waiting for a pipe, and none fills the memory out of /dev/zero."""
    pipe(tmp_path / "c.pt")
    for source in (str(tmp_path / "c.pt"), "/dev/zero"):
        command = [sys.executable, "-m", "normfold", "inspect", source]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 2
        assert "not a file" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_model_that_is_called_like_its_source_is_not_its_source(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"folded")
    assert place_of(tmp_path / "m.onnx", "../elsewhere/m.onnx", name="m.onnx") is None
