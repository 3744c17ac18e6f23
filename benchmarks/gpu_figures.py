"""Figures of timed rounds and of profiles: medians, ratios, shares. Nothing here touches a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu_models import BASELINES, FOLDED, LIMIT, UNFOLDED
from normfold.bench.statistics import CONFIDENCE

_RESAMPLES = 2000
# The names under which norms and calls stand in a profile.
NORM, CALL = "normfold.norm", "normfold.call"


def summary(milliseconds: Sequence[float], batch: int, *, generates: bool) -> dict[str, Any]:
    """Median and quartiles of the rounds of one variant; nothing where there are none. generates: a token a round."""
    if not milliseconds:
        return {}
    low, median, high = (float(q) for q in np.percentile(milliseconds, (25, 50, 75)))
    found = {"median_ms": median, "q25_ms": low, "q75_ms": high, "samples_ms": [_short(each) for each in milliseconds]}
    if generates:
        # By the step of median length: one that something interrupted does not count for many.
        found["tokens_per_second"] = batch * 1e3 / median
    return found


def _short(value: float) -> float:
    return float(f"{value:.5g}")


# (numerator, denominator): what is set side by side.
COMPARED = (
    *((FOLDED, baseline) for baseline in BASELINES),
    (FOLDED, UNFOLDED),
    *((UNFOLDED, baseline) for baseline in BASELINES),
    *((LIMIT, baseline) for baseline in BASELINES),
    (FOLDED, LIMIT),
)


def ratios(samples: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Time of one variant relative to another's, with its bootstrap interval over the rounds."""
    found = []
    for first, second in COMPARED:
        if samples.get(first) and samples.get(second):
            value, low, high = ratio(samples[first], samples[second])
            found.append({"of": first, "to": second, "value": value, "low": low, "high": high})
    return found


def ratio(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """The median over the rounds of first / second, and its percentile-bootstrap interval.

    The rounds are of one process: the interval says nothing about another one.
    """
    logs = np.log(np.asarray(first) / np.asarray(second))
    drawn = np.random.default_rng(0).integers(0, logs.size, (_RESAMPLES, logs.size))
    medians = np.median(logs[drawn], axis=1)
    low, high = np.quantile(medians, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high))


def shares(events: Sequence[Mapping[str, Any]], calls: int) -> dict[str, Any]:
    """How much of the device's time the norms take, from the events of a Chrome trace of `calls` calls.

    A kernel belongs to a norm if it was launched while the norm ran: the launch and the kernel have one correlation
    number. Without kernels (on the CPU) it is the time of the norms in the time of the calls. Times are per call.
    """
    ranges = [each for each in events if each.get("cat") == "user_annotation" and each.get("ph") == "X"]
    norms = sorted((each["ts"], each["ts"] + each["dur"]) for each in ranges if each["name"] == NORM)
    kernels = [each for each in events if each.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if not kernels:
        whole = sum(each["dur"] for each in ranges if each["name"] == CALL)
        inside = sum(end - start for start, end in norms)
        return {"of": "cpu", "busy_us": whole / calls, "norm_us": inside / calls, "share": _part(inside, whole)}
    launches = {
        each["args"]["correlation"]: each["ts"]
        for each in events
        if each.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in each.get("args", {})
    }
    starts = [start for start, _ in norms]
    in_norm = []
    for kernel in kernels:
        when = launches.get(kernel.get("args", {}).get("correlation"))
        place = -1 if when is None else int(np.searchsorted(starts, when, side="right")) - 1
        in_norm.append(when is not None and place >= 0 and when <= norms[place][1])
    busy = sum(kernel["dur"] for kernel in kernels)
    spent = sum(kernel["dur"] for kernel, inside in zip(kernels, in_norm, strict=True) if inside)
    longest: dict[str, float] = {}
    for kernel, inside in zip(kernels, in_norm, strict=True):
        if inside:
            longest[kernel["name"]] = longest.get(kernel["name"], 0.0) + kernel["dur"] / calls
    return {
        "of": "kernels",
        "busy_us": busy / calls,
        "norm_us": spent / calls,
        "share": _part(spent, busy),
        "kernels": len(kernels) / calls,
        "norm_kernels": sum(in_norm) / calls,
        "norm_kernel_names": dict(sorted(longest.items(), key=lambda item: -item[1])[:4]),
    }


def _part(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def line(key: str, found: Mapping[str, Any]) -> str:
    """What is printed of a cell."""
    if "error" in found:
        return f"{key}: {found['error']}"
    medians = (
        f"{name} {variant['median_ms']:.4g} ms" if "median_ms" in variant else f"{name}: {variant.get('error', '-')}"
        for name, variant in found["variants"].items()
    )
    compared = (
        f"{each['of']} / {each['to']} {each['value']:.3f} ({each['low']:.3f} to {each['high']:.3f})"
        for each in found["ratios"]
        if each["of"] == FOLDED and each["to"] in BASELINES
    )
    return f"{key}: {'; '.join((*medians, *compared))}"
