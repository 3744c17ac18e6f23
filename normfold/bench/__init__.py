"""What folding bought: latency and memory of the LayerNorm baseline, the unfolded and the folded model, side by side.

`run.bench` is the whole measurement; `harness` alone times any set of `Job`s, each in its own fresh processes.
"""
