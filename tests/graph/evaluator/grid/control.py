"""If, Loop, Scan, sequences, optionals and functions of the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from string import Template

import numpy as np

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import B, F, N, S, V, row, text

LENGTHS = (np.asarray(0, np.int64), np.asarray(1, np.int64), np.asarray(4, np.int64))
TRUE, FALSE = np.asarray(True), np.asarray(False)


def cases() -> Iterator[Case]:
    for opset in (11, 18):
        yield from branches(opset)
        yield from loops(opset)
        yield from scans(opset)
    yield from scan_of_opset_8()
    yield from sequences()
    yield from optionals()
    yield from functions()


def model(opset: int, source: str, note: str, **feeds: object) -> Case:
    """A model in text form, at an opset."""
    return text(f'<ir_version: 8, opset_import: ["" : {opset}]> {source}', note=f"{note}, opset {opset}", **feeds)


def branches(opset: int) -> Iterator[Case]:
    plain = """g (bool c, float[3,4] x) => (float[n,m] y, float[k] z) {
        h = Relu(x)
        y, z = If (c) <
            then_branch = t () => (float[3,4] a, float[4] b) { a = Add(h, x)  b = ReduceSum_(h) },
            else_branch = e () => (float[1,4] a, float[4] b) { a = Neg(s)  b = Neg(f) }
        >
    }"""
    total = "ReduceMax <axes = [0], keepdims = 0> (h)" if opset < 18 else "ReduceMax <keepdims = 0> (h, zero)"
    first = "f = ReduceMin <axes = [0], keepdims = 0> (x) s = ReduceMin <axes = [0]> (x)"
    if opset >= 18:
        first = (
            "zero = Constant <value = int64[1] {0}> () f = ReduceMin <keepdims = 0> (x, zero) s = ReduceMin (x, zero)"
        )
    source = plain.replace("ReduceSum_(h)", total).replace("h = Relu(x)", f"h = Relu(x) {first}")
    for flag in (TRUE, FALSE):
        yield model(opset, source, f"If {flag}", c=flag, x=F(3, 4))
    nested = """g (bool c, bool d, float[3] x) => (float[3] y) {
        y = If (c) <
            then_branch = t () => (float[3] a) { a = If (d) <
                then_branch = u () => (float[3] i) { i = Exp(x) },
                else_branch = v () => (float[3] j) { k = Abs(x) j = Sqrt(k) }
            > },
            else_branch = e () => (float[3] a) { a = Identity(x) }
        >
    }"""
    for flag, other in product((TRUE, FALSE), repeat=2):
        yield model(opset, nested, f"If in If {flag} {other}", c=flag, d=other, x=F(3))


def loops(opset: int) -> Iterator[Case]:
    counted = """g (int64 n, bool c, float[2,3] x) => (float[2,3] y, float[t,2,3] all) {
        y, all = Loop (n, c, x) <
            body = b (int64 i, bool go, float[2,3] s) => (bool on, float[2,3] r, float[2,3] o) {
                on = Identity(go) f = Cast <to = 1> (i) p = Add(s, f) r = Mul(p, half) o = Neg(r)
            }
        >
    }""".replace(
        "=> (float[2,3] y, float[t,2,3] all) {",
        "=> (float[2,3] y, float[t,2,3] all) { half = Constant <value = float {0.5}> ()",
    )
    for count, flag in product(LENGTHS, (TRUE, FALSE)):
        yield model(opset, counted, f"Loop {count} {flag}", n=count, c=flag, x=F(2, 3))
    until = """g (int64 n, float[1] x) => (float[1] y, float[t,1] all) {
        limit = Constant <value = float[1] {20.0}> () one = Constant <value = float[1] {1.0}> ()
        yes = Constant <value = bool {1}> ()
        y, all = Loop (n, yes, x) <
            body = b (int64 i, bool go, float[1] s) => (bool on, float[1] r, float[1] o) {
                d = Add(s, s) r = Add(d, one) o = Identity(s) l = Less(r, limit) on = Squeeze_(l)
            }
        >
    }""".replace("Squeeze_(l)", "Reshape(l, scalar)").replace(
        "yes = ", "scalar = Constant <value = int64[0] {}> () yes = "
    )
    for count in LENGTHS:
        yield model(opset, until, f"Loop until {count}", n=np.asarray(count * 3), x=V(1.5))
    forever = until.replace("(n, yes, x)", "( , yes, x)").replace("int64 n, ", "")
    yield model(opset, forever, "Loop without a count", x=V(1.5))
    unconditional = counted.replace("(n, c, x)", "(n, , x)").replace("bool c, ", "")
    yield model(opset, unconditional, "Loop without a condition", n=LENGTHS[2], x=F(2, 3))


def scans(opset: int) -> Iterator[Case]:
    source = Template("""g (float[2] s, float[$x] x, float[4,2] z) => (float[2] last, float[a,b] sums,
        float[c,d] others) {
        last, sums, others = Scan (s, x, z) <
            num_scan_inputs = 2, scan_input_axes = [$axis, 0], scan_output_axes = [0, $out],
            scan_input_directions = [$back, 0], scan_output_directions = [0, $turn],
            body = b (float[2] state, float[2] left, float[2] right) => (float[2] next, float[2] sum, float[2] other) {
                sum = Add(state, left) other = Mul(left, right) next = Tanh(sum)
            }
        >
    }""")
    for axis, out, back, turn in product((0, 1, -1), (0, 1), (0, 1), (0, 1)):
        if axis < 0 and opset < 11:
            continue
        given = source.substitute(axis=axis, out=out, back=back, turn=turn, x="4,2" if axis == 0 else "2,4")
        note = f"Scan axis={axis} out={out} back={back} turn={turn}"
        yield model(opset, given, note, s=F(2), x=F(*((4, 2) if axis == 0 else (2, 4))), z=F(4, 2))


def scan_of_opset_8() -> Iterator[Case]:
    source = """g (LENGTHS float[3,2] s, float[3,4,2] x) => (float[3,2] last, float[3,4,2] sums) {
        last, sums = Scan (NAME, s, x) <
            num_scan_inputs = 1, DIRECTIONS
            body = b (float[2] state, float[2] left) => (float[2] next, float[2] sum) {
                sum = Add(state, left) next = Tanh(sum)
            }
        >
    }"""
    for lengths, directions in product(
        (None, V(4, 1, 2, dtype=np.int64)), ("", "directions = [0],", "directions = [1],")
    ):
        given = source.replace("DIRECTIONS", directions).replace("NAME", "" if lengths is None else "n")
        given = given.replace("LENGTHS", "" if lengths is None else "int64[3] n,")
        feeds = {} if lengths is None else {"n": lengths}
        yield model(
            8, given, f"Scan {directions}{'' if lengths is None else ' lengths'}", s=F(3, 2), x=F(3, 4, 2), **feeds
        )


def sequences() -> Iterator[Case]:
    parts = [np.arange(6, dtype=np.float32).reshape(2, 3) + k for k in range(3)]
    for opset in (11, 13, 24):
        for place in (0, 1, 2, -1, -3):
            given = f"""g (seq(float[2,3]) q, float[2,3] x) => (float[2,3] at, seq(float[2,3]) less,
                seq(float[2,3]) more, int64 n) {{
                i = Constant <value = int64 {{{place}}}> ()
                at = SequenceAt(q, i) less = SequenceErase(q, i) more = SequenceInsert(q, x, i) n = SequenceLength(less)
            }}"""
            yield model(opset, given, f"Sequence at {place}", q=parts, x=F(2, 3))
        given = """g (float[2,3] x, float[1,3] z) => (float[a,b] c, float[d,e,f] s, seq(float[]) q, seq(float[]) r) {
            q = SequenceConstruct(x, z, x) c = ConcatFromSequence <axis = 0> (q)
            e = SequenceEmpty <dtype = 1> () p = SequenceInsert(e, x) r = SequenceInsert(p, x)
            s = ConcatFromSequence <axis = -1, new_axis = 1> (r)
        }"""
        yield model(opset, given, "Sequence built", x=F(2, 3), z=F(1, 3))
        last = (
            """g (seq(float[]) q) => (seq(float[]) less, int64 n) { less = SequenceErase(q) n = SequenceLength(q) }"""
        )
        yield model(opset, last, "Sequence without its last", q=parts)
    for axis, keepdims, split in product((0, 1, -1), (None, 0, 1), (None, [2, 2], 2, 3)):
        length = 4 if axis == 0 else 5
        parts_of = [2, length - 2] if isinstance(split, list) else split
        yield row("SplitToSequence", F(4, 5), parts_of, axis=axis, keepdims=keepdims)
    words = [np.asarray(["a", "b"], object), np.asarray(["c"], object)]
    source = """g (seq(string[]) q) => (string[n] y) { y = ConcatFromSequence <axis = 0> (q) }"""
    yield model(13, source, "Sequence of strings", q=words)
    mapped = """g (seq(float[]) q, float[3] w) => (seq(float[]) y) {
        y = SequenceMap (q, w) < body = b (float[a,3] x, float[3] v) => (float[a,3] o) { o = Mul(x, v) } >
    }"""
    yield model(17, mapped, "SequenceMap", q=parts, w=F(3))
    carried = """g (float[2] x, int64 n) => (seq(float[2]) y) {
        start = SequenceEmpty <dtype = 1> () yes = Constant <value = bool {1}> ()
        y = Loop (n, yes, start) < body = b (int64 i, bool go, seq(float[2]) s) => (bool on, seq(float[2]) r) {
            on = Identity(go) f = Cast <to = 1> (i) v = Add(x, f) r = SequenceInsert(s, v) } >
    }"""
    for opset, count in product((13, 16, 19), LENGTHS):
        yield model(opset, carried, f"Loop over a sequence {count}", x=F(2), n=count)


def optionals() -> Iterator[Case]:
    for opset in (15, 18):
        source = """g (float[3] x) => (float[3] y, bool h) {
            o = Optional(x) y = OptionalGetElement(o) h = OptionalHasElement(o)
        }"""
        yield model(opset, source, "Optional", x=F(3))
    source = """g (optional(float[3]) o) => (bool h) { h = OptionalHasElement(o) }"""
    for given in (V(1, 2, 3), None):
        case = model(18, source, f"Optional fed {'nothing' if given is None else 'a tensor'}", o=V(1, 2, 3))
        yield Case(case.name, case.model, {"o": given})
    yield row("OptionalHasElement", F(3))
    yield row("OptionalGetElement", F(3))
    yield row("OptionalHasElement")


def functions() -> Iterator[Case]:
    source = """<ir_version: 9, opset_import: ["" : OPSET, "own" : 1]> g (float[2,3] x)
        => (float[2,3] y, float[2,3] z) {
        y = own.leak <slope = 0.3> (x) z = own.twice (y)
    }
    <domain: "own", opset_import: ["" : OPSET, "own" : 1]>
    leak <slope> (v) => (w) { w = LeakyRelu <alpha: float = @slope> (v) }
    <domain: "own", opset_import: ["" : OPSET, "own" : 1]>
    twice <slope: float = 0.1> (v) => (w) { u = own.leak <slope: float = @slope> (v) d = Add(u, u)
        w = own.leak <slope = -0.5> (d) }
    """
    for opset in (13, 16, 18, 21):
        yield text(source.replace("OPSET", str(opset)), note=f"functions, opset {opset}", x=F(2, 3))
    branch = """<ir_version: 9, opset_import: ["" : 18, "own" : 1]> g (float[2,3] x, bool c) => (float[2,3] y) {
        y = own.pick <k = 2.5> (x, c) }
    <domain: "own", opset_import: ["" : 18]>
    pick <k> (v, c) => (w) {
        w = If (c) <
            then_branch = t () => (a) { f = Constant <value_float: float = @k> () a = Mul(v, f) },
            else_branch = e () => (a) { a = Neg(v) }
        >
    }"""
    for flag in (TRUE, FALSE):
        yield text(branch, note=f"function with a branch {flag}", x=F(2, 3), c=flag)
    unused = """<ir_version: 9, opset_import: ["" : 18, "own" : 1]> g (float[2,3] x) => (float[2,3] y) {
        y = own.maybe (x) }
    <domain: "own", opset_import: ["" : 18]>
    maybe (v, low, high) => (w) { w = Clip(v, low, high) }"""
    yield text(unused, note="function with inputs left out", x=F(2, 3))
    shape = """<ir_version: 9, opset_import: ["" : 18]> g (bool[2,3] x, string[2] s, int64[2] i)
        => (float[2,3] y, string[2] t, int64[2] j) {
        y = Cast <to = 1> (x) t = Identity(s) j = Add(i, i)
    }"""
    yield text(shape, note="types", x=B(2, 3), s=S("a", "b"), i=N(0, 9, 2))
