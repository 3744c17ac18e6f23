"""The papers' figures, what is known of their conditions, and what a record of the GPU study says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A speed-up counts as the published one from this part of it on.
ENOUGH = 0.9


@dataclass(frozen=True)
class Claim:
    """A published figure. gain: by how much faster (or, of memory, smaller) the folded network is, as a fraction.

    places: the cells that come nearest to its conditions, as (network, workload, batch), eager float32; the best of
    them counts where the paper names none. baselines: the published one first.
    """

    text: str
    conditions: str
    gain: float
    places: tuple[tuple[str, str, int], ...]
    baselines: tuple[str, ...] = ("layernorm",)
    memory: bool = False


_UN = (
    ("t2t_vit_14", "forward", 1),
    ("t2t_vit_14", "forward", 64),
    ("encoder", "forward", 1),
    ("encoder", "forward", 64),
)

CLAIMS = (
    Claim(
        "UN is 31 % faster than LayerNorm (arXiv 2208.01313)",
        '"GPU, classification", an RTX 3090 in one text; no network, batch or framework given',
        0.31,
        _UN,
    ),
    Claim(
        "UN takes 18 % less memory than LayerNorm (arXiv 2208.01313)",
        "the same",
        0.18,
        _UN,
        memory=True,
    ),
    Claim(
        "Swin-T with PRepBN: 18.6 -> 16.2 ms, 15 % faster (arXiv 2405.11582)",
        "`eval.py`: torch eager, no autocast, batch 1, CUDA events; GPU not named",
        18.6 / 16.2 - 1,
        (("swin_t", "forward", 1),),
    ),
    Claim(
        "Swin-T with PRepBN, throughput (arXiv 2405.11582)",
        "`eval.py`: torch eager, no autocast, batch 128; GPU not named; set beside the latency's 15 %",
        18.6 / 16.2 - 1,
        (("swin_t", "forward", 128),),
    ),
    Claim(
        "LLaMA-350M with PRepBN: 44 -> 50.4 tokens/s, 15 % faster (arXiv 2405.11582)",
        "Hugging Face `generate(max_length=100)`, batch 1, `use_cache: false`, eager RMSNorm of several kernels; "
        "GPU not named",
        50.4 / 44 - 1,
        (("llama_350m", "generate", 1),),
        ("rmsnorm, multi-kernel", "rmsnorm, fused"),
    ),
)


class Found:
    """A record, asked for single figures; nothing is found without one."""

    def __init__(self, record: Mapping[str, Any] | None) -> None:
        self.cells = {
            (cell["model"], cell["workload"], cell["batch"]): cell
            for cell in (record["cells"] if record is not None else ())
            if cell.get("mode") == "eager" and cell.get("column") == "float32" and "variants" in cell
        }

    def ratio(self, place: tuple[str, str, int], of: str, to: str) -> Mapping[str, float] | None:
        """Time of one variant relative to another's there."""
        ratios = self.cells.get(place, {}).get("ratios", ())
        return next((each for each in ratios if (each["of"], each["to"]) == (of, to)), None)

    def peak(self, place: tuple[str, str, int], variant: str) -> int | None:
        """The largest memory of a variant there, in bytes."""
        variants = self.cells.get(place, {}).get("variants", {})
        found: int | None = (variants.get(variant, {}).get("memory") or {}).get("peak")
        return found

    def share(self, place: tuple[str, str, int], variant: str) -> float | None:
        """The part of the GPU's busy time that the norms of a variant take there."""
        variants = self.cells.get(place, {}).get("variants", {})
        found: float | None = (variants.get(variant, {}).get("profile") or {}).get("share")
        return found

    def idle(self, place: tuple[str, str, int], variant: str) -> float | None:
        """The part of a call in which the GPU of a variant waits for the next kernel."""
        found = self.cells.get(place, {}).get("variants", {}).get(variant, {})
        busy = (found.get("profile") or {}).get("busy_us")
        return None if not busy or "median_ms" not in found else max(0.0, 1.0 - busy / 1e3 / found["median_ms"])


def judged(claim: Claim, found: Found) -> tuple[str, str]:
    """What became of a claim, in words, and why."""
    if claim.memory:
        return _judged_memory(claim, found)
    baseline = claim.baselines[0]
    known = [place for place in claim.places if found.ratio(place, "folded", baseline) is not None]
    if not known:
        return "not measured", "-"
    best = min(known, key=lambda place: found.ratio(place, "folded", baseline)["value"])  # type: ignore[index]
    verdicts, reasons = [], []
    for name in claim.baselines:
        ratio = found.ratio(best, "folded", name)
        if ratio is not None:
            against = f" than {name}" if len(claim.baselines) > 1 else ""
            verdicts.append(f"{_change(ratio)}{against}")
        reasons.append(_why(best, name, claim, found))
    ratio = found.ratio(best, "folded", baseline)
    assert ratio is not None
    return f"**{_verdict(ratio, claim.gain)}**: {', '.join(verdicts)} ({_place(best)})", " ".join(filter(None, reasons))


def _verdict(ratio: Mapping[str, float], gain: float) -> str:
    if ratio["high"] >= 1.0:
        return "not reproduced"
    return "reproduced" if 1 / ratio["value"] - 1 >= ENOUGH * gain else "partly reproduced"


def _change(ratio: Mapping[str, float]) -> str:
    if ratio["low"] <= 1.0 <= ratio["high"]:
        return f"no measurable difference ({1 / ratio['value'] - 1:+.1%})"
    speed = 1 / ratio["value"] - 1
    return f"{speed:.1%} faster" if speed > 0 else f"{-speed:.1%} slower"


def _place(place: tuple[str, str, int]) -> str:
    network, workload, batch = place
    return f"{network}{'' if workload == 'forward' else f', {workload}'}, eager float32, batch {batch}"


def _why(place: tuple[str, str, int], baseline: str, claim: Claim, found: Found) -> str:
    """From the share of the norms' kernels, the time in which the GPU waits, and the network without norms."""
    parts = []
    share, idle = found.share(place, baseline), found.idle(place, baseline)
    if share is not None:
        parts.append(f"the norms of {baseline} are {share:.1%} of the GPU's busy time")
    if idle is not None and idle > 0.1:
        parts.append(f"the GPU waits for Python in {idle:.0%} of a call, so that what counts is how many kernels go")
    limit = found.ratio(place, "limit", baseline)
    if limit is not None:
        most = 1 / limit["value"] - 1
        bound = ", less than the claim: it cannot come from the norms alone here" if most < claim.gain * ENOUGH else ""
        parts.append(f"without any norm the network is {most:.1%} faster{bound}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _judged_memory(claim: Claim, found: Found) -> tuple[str, str]:
    savings = {}
    for place in claim.places:
        ours, theirs = found.peak(place, "folded"), found.peak(place, claim.baselines[0])
        if ours is not None and theirs:
            savings[place] = 1 - ours / theirs
    if not savings:
        return "not measured", "-"
    best = max(savings, key=lambda place: savings[place])
    saved = savings[best]
    word = "reproduced" if saved >= ENOUGH * claim.gain else "partly reproduced" if saved > 0.01 else "not reproduced"
    limit, theirs = found.peak(best, "limit"), found.peak(best, claim.baselines[0])
    reason = "-" if limit is None or not theirs else f"Without any norm the peak is {1 - limit / theirs:.1%} lower."
    return f"**{word}**: {saved:.1%} less at the peak ({_place(best)})", reason
