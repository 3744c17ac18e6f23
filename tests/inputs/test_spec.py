from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfold.errors import InputSpecError
from normfold.inputs.spec import (
    DTYPES,
    INTEGERS,
    InputSpec,
    axis_sizes,
    call_arguments,
    draw,
    parse_specs,
    traced_sizes,
    with_letters,
)

SPECS = ["x:float32[B,3,224,224]", "ids:int64[B,L=16]<256", "pos:float32[L=4<=64,8]", "s:float64[]", "m:bool[B,L<=9]"]
SPECS += ["x:float32[B,3,H=32*n,W=32*n=64>=64<=320]", "x:float32[B>=33]", "rate:int64[]{8000,16000}"]
SPECS += ["mask:int64[B,P+S]", "past:float32[B,P=4>=0,P+1,P+P+S+3]"]


@pytest.mark.parametrize("text", SPECS)
def test_a_specification_survives_printing(text: str) -> None:
    spec = InputSpec.parse(text)
    assert str(spec) == text
    assert InputSpec.parse(str(spec)) == spec


def test_a_sum_is_as_long_as_its_parts() -> None:
    given = parse_specs(["x:float32[B,S,8]", "past:float32[B,P=4,8]", "mask:bool[B,1,S,P + S]", "more:bool[Q+2]"])
    sizes = traced_sizes(given)
    assert sorted(sizes) == ["B", "P", "Q", "S"] and sizes["P"] == 4
    drawn = draw(given, {**sizes, "P": 9, "Q": 0}, seed=0)
    assert drawn["mask"].shape == (sizes["B"], 1, sizes["S"], 9 + sizes["S"]) and drawn["more"].shape == (2,)
    assert with_letters("P+S", {"P": "S"}) == "S+S" and with_letters("P+S+1", {"P": 3}) == "S+4"
    assert with_letters("P+1", {"P": 3}) == 4 and with_letters("T", {"T": "P+S"}) == "P+S"


@st.composite
def specs(draw_one: st.DrawFn) -> InputSpec:
    dims = tuple(draw_one(st.lists(st.integers(1, 9) | st.sampled_from(["B", "L", "seq_len"]), max_size=5)))
    letters = {dim for dim in dims if isinstance(dim, str)}
    sizes = {letter: draw_one(st.integers(2, 20)) for letter in letters if draw_one(st.booleans())}
    limits = {
        letter: sizes.get(letter, 2) + draw_one(st.integers(0, 9)) for letter in letters if draw_one(st.booleans())
    }
    dtype = draw_one(st.sampled_from(DTYPES))
    high = draw_one(st.none() | st.integers(1, 1000)) if dtype in INTEGERS else None
    return InputSpec(draw_one(st.sampled_from(["x", "input.1", "onnx::Conv_0"])), dtype, dims, sizes, high, limits)


@given(specs())
def test_every_specification_survives_printing(spec: InputSpec) -> None:
    assert InputSpec.parse(str(spec)) == spec


@given(specs())
def test_drawn_inputs_have_the_shape_and_dtype_of_their_specification(spec: InputSpec) -> None:
    for sizes in axis_sizes([spec]):
        value = draw([spec], sizes, seed=1)[spec.name]
        assert value.shape == spec.shape(sizes)
        assert value.dtype == spec.dtype


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x", "expected name:dtype"),
        (f"x:float32[B,{'9' * 5000}]", "more than 18 digits"),
        (f"x:int64[B]<{'9' * 5000}", "more than 18 digits"),
        (f"x:int64[B+{'9' * 12}]", "neither a number nor a letter"),
        ("x:float32", "expected name:dtype"),
        ("x:float32[B", "expected name:dtype"),
        ("x:float31[B]", "unknown dtype 'float31'"),
        ("x:bfloat16[B]", "unknown dtype"),
        ("x:float32[B,]", "neither a number nor a letter"),
        ("x:float32[B,-1]", "neither a number nor a letter"),
        ("x:float32[64*B]", "neither a number nor a letter"),
        ("x:float32[0,3]", "a dimension of 0"),
        ("x:float32[B]<4", "upper bound is for integers"),
        ("x:int64[B]<0", "exclusive"),
        ("x:int64[B=1]", "bakes the sizes 0 and 1"),
        ("x:int64[B=3,B=4]", "two sizes"),
        ("x:int64[B=9<=8]", "past its limit of 8"),
        ("x:int64[B=>1]", "neither a number nor a letter"),
        ("x:int64[B=4>=8]", "traced at 4, which>=8 does not allow"),
        ("x:int64[H=32*h=48]", "traced at 48, which=32\\*n does not allow"),
        ("x:int64[H=32*h>=33<=63]", "axis H has no size"),
        ("x:int64[H=0*h]", "cannot be a multiple of 0"),
        ("x:float32[B]{1,2}", "a choice of numbers is for integers"),
    ],
)
def test_a_malformed_specification_says_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(InputSpecError, match=complaint):
        InputSpec.parse(text)


def test_inputs_must_agree_with_each_other() -> None:
    with pytest.raises(InputSpecError, match="'x' is specified twice"):
        parse_specs(["x:float32[B]", "x:float32[B]"])
    with pytest.raises(InputSpecError, match="axis L is traced at 4 in one input and at 5 in y"):
        parse_specs(["x:float32[L=4]", "y:float32[L=5]"])
    with pytest.raises(InputSpecError, match="past its limit of 8"):
        parse_specs(["x:float32[L=9]", "y:float32[L<=8]"])


def test_traced_sizes_differ_from_each_other_and_from_static_dimensions() -> None:
    sizes = traced_sizes(parse_specs(["x:float32[B,3,5,H,W]", "y:float32[B,L]"]))
    assert set(sizes) == {"B", "H", "W", "L"}
    assert len({*sizes.values(), 3, 5}) == 6
    assert min(sizes.values()) > 1
    assert traced_sizes(parse_specs(["x:float32[B=8,L]"]))["B"] == 8
    assert traced_sizes(parse_specs(["x:float32[L<=2]"])) == {"L": 2}


def test_each_axis_is_varied_on_its_own_and_within_its_limit() -> None:
    specs = parse_specs(["ids:int64[B<=40,L=16<=20]"])
    sizes = axis_sizes(specs)
    traced = traced_sizes(specs)
    assert sizes[0] == traced
    for letter in traced:
        tried = {other[letter] for other in sizes}
        assert {1, traced[letter]} < tried
        assert any({k: v for k, v in other.items() if v != traced[k]} == {letter: 1} for other in sizes)
    assert max(other["L"] for other in sizes) == 17
    assert max(other["B"] for other in sizes) == 2 * traced["B"] + 1
    assert axis_sizes(parse_specs(["x:float32[2,3]"])) == [{}]


def test_one_size_of_an_axis_is_large_where_that_is_cheap() -> None:
    def largest(text: str, parameters: int = 0) -> int:
        return max(size for sizes in axis_sizes(parse_specs([text]), parameters=parameters) for size in sizes.values())

    assert largest("x:float32[B,3,16,16]") == 65
    assert largest("ids:int64[B,L]<256") == 513
    assert largest("ids:int64[4,L<=128]<256") == 128
    assert largest("x:float32[1,3,H=32*h,W=32*w]") == 256
    # 64 images of this size are not cheap, nor is a model of a hundred million parameters, nor 64 rows of 64 tokens.
    assert largest("x:float32[B,3,224,224]") < 64
    assert largest("ids:int64[B,L]<256", parameters=100_000_000) < 64
    assert largest("ids:int64[B,64]<256", parameters=100_000_000) < 64 < largest("ids:int64[B,64]<256", 1000)


def test_sizes_keep_their_least_and_their_multiple() -> None:
    specs = parse_specs(["x:float32[B,3,H=32*h>=40,W>=33]"])
    sizes = axis_sizes(specs)
    assert {other["H"] % 32 for other in sizes} == {0}
    assert min(other["H"] for other in sizes) == 64
    assert min(other["W"] for other in sizes) == 33
    assert len({other["H"] for other in sizes}) > 3
    assert len({other["W"] for other in sizes}) > 3


def test_a_choice_of_numbers_is_drawn_from() -> None:
    drawn = draw(parse_specs(["rate:int64[99]{8000,16000}"]), {}, seed=0)["rate"]
    assert set(np.unique(drawn)) == {8000, 16000}


def test_an_axis_that_may_be_empty_is_tried_empty() -> None:
    text = "past:float32[B,P=5>=0<=9]"
    specs = parse_specs([text, "ids:int64[B,L]"])
    assert str(specs[0]) == text
    sizes = axis_sizes(specs)
    traced = traced_sizes(specs)
    assert {**traced, "P": 0} in sizes
    assert {**traced, "P": 1} in sizes
    assert {"B": 1, "P": 0, "L": 1} in sizes
    assert min(other["L"] for other in sizes) == min(other["B"] for other in sizes) == 1
    assert draw(specs, {"B": 2, "P": 0, "L": 1}, seed=0)["past"].shape == (2, 0)


def test_drawing_depends_on_the_seed_and_the_scale_only() -> None:
    specs = parse_specs(["x:float32[B,64]", "ids:int64[B,64]<7", "m:bool[B,64]"])
    one, same, other = (draw(specs, {"B": 4}, seed=seed) for seed in (1, 1, 2))
    for name in one:
        assert np.array_equal(one[name], same[name])
        assert not np.array_equal(one[name], other[name])
    assert np.allclose(draw(specs, {"B": 4}, seed=1, scale=2.0)["x"], 2 * one["x"])
    assert set(np.unique(one["ids"])) == set(range(7))
    assert one["m"][:, 0].all()
    assert not one["m"].all()


def test_integers_of_an_unknown_range_stay_in_the_smallest_vocabulary() -> None:
    assert set(np.unique(draw(parse_specs(["ids:int64[99]"]), {}, seed=0)["ids"])) == {0, 1}


def test_drawing_needs_a_size_for_every_axis() -> None:
    with pytest.raises(InputSpecError, match="no size given for dynamic axis L"):
        draw(parse_specs(["x:float32[B,L]"]), {"B": 2}, seed=0)


def test_inputs_go_to_the_parameters_of_their_name() -> None:
    def forward(ids: int, mask: int = 0, *, scale: int = 1) -> None: ...

    def anonymous(*inputs: int) -> None: ...

    assert call_arguments(forward, {"mask": 2, "ids": 1}) == ((1, 2), {})
    assert call_arguments(forward, {"ids": 1, "scale": 3}) == ((1,), {"scale": 3})
    assert call_arguments(forward, {"x": 1, "y": 2}) == ((1, 2), {})
    assert call_arguments(anonymous, {"x": 1, "y": 2}) == ((1, 2), {})
