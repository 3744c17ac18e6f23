"""What the page of the GPU study says of the papers' figures, on records that were made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_page
from benchmarks.gpu_claims import CLAIMS, Found, judged

SWIN = next(claim for claim in CLAIMS if "18.6 -> 16.2" in claim.text)
LLAMA = next(claim for claim in CLAIMS if "tokens/s" in claim.text)
UN, MEMORY = CLAIMS[0], CLAIMS[1]


def cell(model: str, speed: float, *, limit: float = 1.2, workload: str = "forward", batch: int = 1) -> dict[str, Any]:
    """Eager float32, folded `speed` times as fast as a baseline of 10 ms, its norms 12 % of a GPU that is half idle."""
    generates = workload != "forward"
    baselines = ("rmsnorm, multi-kernel", "rmsnorm, fused") if generates else ("layernorm",)
    times = dict.fromkeys(baselines, 10.0) | {"unfolded": 11.0, "folded": 10.0 / speed, "limit": 10.0 / limit}

    def variant(name: str, milliseconds: float) -> dict[str, Any]:
        peak = {"folded": 90_000_000, "limit": 80_000_000}.get(name, 100_000_000)
        found: dict[str, Any] = {
            "median_ms": milliseconds,
            "q25_ms": milliseconds * 0.99,
            "q75_ms": milliseconds * 1.01,
            "samples_ms": [milliseconds] * 50,
            "memory": {"weights": 50_000_000, "peak": peak, "reserved": 2 * peak},
        }
        if name in (*baselines, "unfolded"):
            found["profile"] = {"of": "kernels", "busy_us": 5000.0, "norm_us": 600.0, "share": 0.12}
        if generates:
            found["tokens_per_second"] = 1e3 / milliseconds
        return found

    compared = [("folded", name) for name in (*baselines, "unfolded")] + [("limit", name) for name in baselines]
    ratios = []
    for a, b in compared:
        value = times[a] / times[b]
        ratios.append({"of": a, "to": b, "value": value, "low": value - 0.005, "high": value + 0.005})
    key = f"{model}, {workload}, eager, float32, batch {batch}"
    return {
        "key": key,
        "model": model,
        "workload": workload,
        "mode": "eager",
        "column": "float32",
        "batch": batch,
        "rounds": 50,
        "cut": False,
        "seconds": 3.0,
        "ratios": ratios,
        "variants": {name: variant(name, milliseconds) for name, milliseconds in times.items()},
        "state": {"sm_clock_mhz": 1980.0, "temperature_c": 41.0},
    }


def record(*cells: dict[str, Any], device: str = "cuda") -> dict[str, Any]:
    machine = {"gpu": "NVIDIA H100", "gpu_memory": 80 << 30, "driver": "580", "cuda": "13.0", "python": "3.12.3"}
    return {
        "schema": 1,
        "device": device,
        "machine": {**machine, "cpu": "x", "versions": {"torch": "2.11.0"}},
        "models": {"swin_t": "Swin-T, PRepBN", "llama_350m": "LLaMA", "t2t_vit_14": "T2T", "encoder": "encoder"},
        "planned": [*(each["key"] for each in cells), "swin_t, forward, compile, bfloat16, batch 64"],
        "cells": list(cells),
        "spent_s": 3.0,
        "stopped": "the time was up",
    }


@pytest.mark.parametrize(
    ("speed", "verdict"),
    [
        (1.15, "**reproduced**: 15.0% faster"),
        (1.08, "**partly reproduced**: 8.0% faster"),
        (1.003, "**not reproduced**: no measurable difference"),
        (0.95, "**not reproduced**: 5.0% slower"),
    ],
)
def test_a_figure_is_reproduced_partly_or_not(speed: float, verdict: str) -> None:
    told, why = judged(SWIN, Found(record(cell("swin_t", speed))))
    assert told.startswith(verdict) and told.endswith("(swin_t, eager float32, batch 1)")
    assert "12.0% of the GPU's busy time" in why and "waits for Python in 50% of a call" in why
    assert "without any norm the network is 20.0% faster" in why


def test_what_no_fold_can_give_is_said() -> None:
    _, why = judged(SWIN, Found(record(cell("swin_t", 1.04, limit=1.05))))
    assert "5.0% faster, less than the claim: it cannot come from the norms alone here" in why


def test_a_claim_names_its_baseline() -> None:
    told, why = judged(LLAMA, Found(record(cell("llama_350m", 1.2, workload="generate"))))
    assert "than rmsnorm, multi-kernel, 20.0% faster than rmsnorm, fused (llama_350m, generate" in told
    assert "norms of rmsnorm, fused" in why


def test_the_best_of_several_networks_counts_where_none_is_named() -> None:
    told, _ = judged(UN, Found(record(cell("t2t_vit_14", 1.02), cell("encoder", 1.1), cell("encoder", 1.05, batch=64))))
    assert told == "**partly reproduced**: 10.0% faster (encoder, eager float32, batch 1)"
    told, why = judged(MEMORY, Found(record(cell("encoder", 1.1))))
    assert told.startswith("**partly reproduced**: 10.0% less at the peak") and "20.0% lower" in why


def test_nothing_is_said_of_what_was_not_measured() -> None:
    for found in (Found(None), Found(record())):
        assert {judged(claim, found)[0] for claim in CLAIMS} == {"not measured"}
    # A rehearsal measures nothing, whatever its networks are called.
    page = gpu_page.page(record(cell("swin_t", 1.2), device="cpu"))
    assert "reproduced" not in page and "rehearsal" in page


def test_the_page_of_a_gpu_has_its_figures() -> None:
    failed = {"key": "swin_t, forward, graph, float32, batch 1", "error": "RuntimeError: capture ended"}
    smoke = {"key": "normfold bench x.pt", "exit": 0, "seconds": 9.0, "output": "folded / layernorm: 0.900"}
    page = gpu_page.page(record(cell("swin_t", 1.15), cell("llama_350m", 1.2, workload="generate"), failed, smoke))
    for part in (
        "NVIDIA H100, 80 GiB, driver 580, CUDA 13.0, torch 2.11.0, Python 3.12.3; SM clock 1980 to 1980 MHz, 41 to",
        "| Swin-T, PRepBN | 1 | float32 | layernorm | 10 ms (± 1.0%) | 11 ms",
        "0.870 (0.865 to 0.875)",
        "| LLaMA, generate | 1 | float32 | rmsnorm, fused | 100.0 tokens/s |",
        "50 → 100 MB / 50 → 100 MB / 50 → 90 MB",
        "capture ended",
        "exit 0, 9 s",
        "(the last run ended because the time was up): 1 compile.",
    ):
        assert part in page, part
    assert "**Not measured.**" not in page


def test_the_page_in_the_repository_is_what_is_made_of_its_record() -> None:
    docs = gpu_page.PAGE.parent
    kept = docs / "gpu.json"
    records = [json.loads(kept.read_text("utf-8"))] if kept.exists() else [None]
    ort = docs / "gpu_ort.json"
    records += [json.loads(ort.read_text("utf-8"))] if ort.exists() else []
    assert gpu_page.PAGE.read_text("utf-8") == gpu_page.page(*records)


def test_a_rehearsal_never_becomes_the_page(tmp_path: Path) -> None:
    place = tmp_path / "gpu.json"
    place.write_text(json.dumps(record(device="cpu")), encoding="utf-8")
    before = gpu_page.PAGE.read_text("utf-8")
    gpu_page.main([str(place)])
    assert (tmp_path / "gpu.md").exists() and gpu_page.PAGE.read_text("utf-8") == before
