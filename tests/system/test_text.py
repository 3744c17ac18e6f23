"""What a file calls its parts reaches a terminal, a log and a report as text, and as nothing else."""

from __future__ import annotations

import json
import random
import re
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from normfold.cli.app import app
from normfold.cli.terminal import print_rich
from normfold.report.render import render
from normfold.report.render_verdict import render_verdict
from normfold.report.verdict_files import junit, junit_error, summary, summary_error
from normfold.system.failures import one_line
from normfold.system.text import json_text, listed, printable
from normfold.verify.judge import Edge, Judged
from normfold.verify.metrics import Figures
from normfold.verify.verdict import Fault, Verdict
from tests.cli.test_app import GRAPH, REPORT, SITES
from tests.support.hostile import seeds

RUN = CliRunner()

NASTY = (
    "\x1b[2J\x1b]0;title\x07",
    "\x1b]52;c;cm0gLXJmIC8=\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "a\n::error file=app.js,line=1::broken",
    "::add-mask::a",
    "::::stop-commands::x",
    "x:\r\n##[group]a",
    "##vso[task.setvariable variable=x]y",
    "##teamcity[buildProblem]",
    "\u2028::warning::x",
    "y[/b]",
    *(f"{'x' * length}::error::y" for length in (18, 19, 20, 78, 79, 80, 90, 198, 200)),
    "a::error::b" * 30,
    "[bold red]x[/]",
    "[link=https://example.com]x[/link]",
    "[/",
    "\x00\x08\x7f",
    "\ufeffx\u200b\U000e0041",
    "\ufffe\uffff",
    "<script>alert(1)</script>|`*_#",
    "](https://example.com)![](x)",
    "]]>&lt;",
    "$\\frac$",
    "e\u0301" * 50,
    "名前" * 200,
    "x" * 3000,
    "",
    " ",
    "-",
    "--force",
    "../../x",
    "%s%n{0}{x!r}",
    "'\"\\",
)
# Text that a library or a system acts upon when it is printed.
COMMAND = re.compile(r"^\s*::|##\[|##vso\[|##teamcity\[", re.MULTILINE)


def assert_inert(text: str) -> None:
    """No character that does not show, but for the newlines of the lines; and no line that is a command."""
    odd = {character for character in text if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert odd <= {"\n"}, sorted(map(ascii, odd))
    assert not COMMAND.search(text), COMMAND.search(text)


def test_every_character_that_does_not_show_is_escaped() -> None:
    checked = 0
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            shown = printable(chr(code))
            assert shown.isascii() and shown.isprintable() and shown.startswith("\\"), hex(code)
            assert json.loads(json_text([chr(code)])) == [chr(code)] and json_text([chr(code)]).isascii(), hex(code)
            checked += 1
    assert checked > 2000
    ordinary = "blocks.3.norm1/BatchNorm:0 é 名 😀 [x] C:\\models std::bad_alloc ## a"
    assert printable(ordinary) == ordinary


@given(st.text() | st.sampled_from(NASTY))
def test_printed_text_is_one_inert_line(text: str) -> None:
    shown = printable(text)
    assert_inert(shown)
    assert "\n" not in shown and not shown.lstrip().startswith("::")
    assert json.loads(json_text({text: [text]})) == {text: [text]}
    assert_inert(json_text({text: [text]}))


def test_a_flood_is_cut() -> None:
    assert len(printable("x" * 10**6)) < 25_000
    assert printable("x" * 10**6).endswith("more characters)")


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]))))
def test_lists_read_back_as_python_writes_them(strings: list[str]) -> None:
    assert listed(str(strings)) == tuple(strings)
    assert listed(str(tuple(strings))) == tuple(strings)


@pytest.mark.parametrize(
    "text",
    [
        "{[]:1}", "-" * 50_000, "[" * 100_000, "[" * 50_000 + "]" * 50_000, "not " * 50_000, "1+" * 50_000 + "1",
        "[1, 2]", "['a', 1]", "['a'", "'a'", "['a' 'b']", "[['a']]", "['a', b'b']", "", None, "[f'{x}']", "(" * 9999,
        "['" + "\\" * 100_000, "[" + "'" * 99_999, "['a'" + ", 'a'" * 50_000 + ", 1]", "nan", "9" * 100_000,
        "['\x00' + 'a']", "__import__('os')",
    ],
)  # fmt: skip
def test_what_is_no_list_of_strings_is_nothing(text: str | None) -> None:
    assert listed(text) == ()


def test_escapes_of_no_character_are_replaced() -> None:
    assert listed(r"['\ud800\U00110000\x41']") == ("\ufffd\ufffdA",)


def test_an_exception_is_one_line() -> None:
    assert one_line(ValueError("a\n  b\t" + "c" * 1000)) == f"a b {'c' * 296}"
    assert "ValueError" not in one_line(ValueError())


def hostile_outputs(name: str) -> Iterator[str]:
    """Everything that is printed or written about a model whose every name is `name`."""
    sites = tuple(replace(s, name=name, reason=name if s.reason else s.reason, into=(name,), kind=name) for s in SITES)
    graph = replace(GRAPH, name=name, sites=sites, nodes_before={name: 1}, inputs=(name,))
    report = replace(REPORT, graphs=(graph,), warnings=(name,), also_written=(name,), task=name)
    figures = Figures(1.0, 1.0, 1.0)
    judged = Judged(name, (figures,), 1.0, 1e-7, 1e-6)
    edges = (Edge("original -> folded", 1.0, 1.0, 1.0, False, name, (judged,)), Edge(name, 1.0, 1.0, 1.0, False, name))
    fault = Fault(1.0, name, name, 1.0, 1.0, name, name)
    verdict = Verdict("0", "1", name, "ab", name, name, (name,), edges, fault, (name,), {name: 1.0})
    for width in (20, 80, 200):
        for content in (render(report), render_verdict(verdict)):
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as stdout:
                patch.setenv("COLUMNS", str(width))
                print_rich(content)
            yield stdout.getvalue()
    yield from (
        report.dumps(),
        verdict.dumps(),
        junit(verdict),
        junit_error(name),
        summary(verdict),
        summary_error(name),
    )
    for text in (junit(verdict), junit_error(name)):
        ElementTree.fromstring(text)
    for data in (report.dumps(), verdict.dumps()):
        json.loads(data)


@pytest.mark.parametrize("name", NASTY)
def test_every_table_and_every_file_is_inert(name: str) -> None:
    checked = 0
    for text in hostile_outputs(name):
        assert_inert(text)
        checked += 1
    assert checked == 12


def test_markdown_stays_text() -> None:
    text = summary_error("<img src=x>|[a](https://example.com)`b`*c*@someone&lt;")
    assert r"\<img src=x\>\|\[a\](https://example.com)\`b\`\*c\*\@someone\&lt;" in text


def renamed(model: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """A model that is as valid as before, with the names and the metadata of a stranger."""
    graph = model.graph
    mapping: dict[str, str] = {}

    def new(name: str) -> str:
        if not name:
            return name
        if name not in mapping:
            nasty = rng.choice(NASTY).encode("utf-8", "ignore").decode()
            mapping[name] = f"{nasty}{len(mapping)}" if rng.random() < 0.4 else name
        return mapping[name]

    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = new(value.name)
    for number, node in enumerate(graph.node):
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        if any(attribute.HasField("g") for attribute in node.attribute):
            continue
        # onnxruntime wants names that differ.
        node.name = f"{rng.choice(NASTY)}{number}" if rng.random() < 0.95 else rng.choice(NASTY)
        node.doc_string = rng.choice(NASTY)
        text = rng.choice([str([rng.choice(NASTY) for _ in range(3)]), "{[]:1}", "-" * 50_000, rng.choice(NASTY)])
        for key in ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy", rng.choice(NASTY)):
            node.metadata_props.add(key=key, value=text)
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and rng.random() < 0.3:
                dim.dim_param = rng.choice(NASTY)
    graph.name, graph.doc_string, model.producer_name = (rng.choice(NASTY) for _ in range(3))
    for key in ("normfold", "author", rng.choice(NASTY)):
        if rng.random() < 0.3:
            model.metadata_props.add(key=key, value=rng.choice((*NASTY, "[" * 9000, "{}", '{"version": "\\u001b"}')))
    return model


def fuzz(seed: int, folder: Path) -> None:
    """One model of a stranger through the command line: what comes out is text, and what went wrong is no traceback."""
    rng = random.Random(seed)
    found = seeds()
    model = renamed(found[rng.choice(sorted(set(found) - {"subgraph", "function"}))], rng)
    source = folder / rng.choice(["a.onnx", "[bold]x[x].onnx", "::error::x.onnx", "\x1b[31m\u202e.onnx", "é.onnx"])
    content = model.SerializeToString()
    # Of the same length, so that it stays a message; but no UTF-8.
    source.write_bytes(content.replace(b"gamma4", b"gam\xff\xc3\x28") if rng.random() < 0.1 else content)
    output, files = folder / "out.onnx", [folder / name for name in ("v.xml", "v.md", "v.json", "r.json")]
    verify = ["verify", str(source), "--against", str(source), "--samples", "2", "--junit", str(files[0])]
    verify += ["--summary", str(files[1]), "--json", str(files[2])]
    fold = ["fold", str(source), "-o", str(output), "--force", "--report", str(files[3])]
    inspect = ["inspect", str(source)]
    commands = (inspect, [*inspect, "--json"], [*fold, "--no-verify"], [*fold, "--strict"], verify)
    words = commands[seed % len(commands)]
    result = RUN.invoke(app, words)
    assert result.exit_code in (0, 1, 2, 3), (seed, words, result.output, result.exception)
    assert result.exit_code != 1 or words[0] != "verify", (seed, "a model differs from itself", result.output)
    assert "Traceback" not in result.output
    assert_inert(result.stdout)
    assert_inert(result.stderr)
    assert result.stderr.count("\n") <= 1, result.stderr
    for file in files:
        if file.exists():
            assert_inert(file.read_text(encoding="utf-8"))
            file.unlink()
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize("seed", range(15))
def test_names_of_a_stranger(seed: int, tmp_path: Path) -> None:
    fuzz(seed, tmp_path)


@pytest.mark.slow
def test_many_names_of_strangers(tmp_path: Path) -> None:
    for seed in range(1000, 11_000):
        fuzz(seed, tmp_path)
