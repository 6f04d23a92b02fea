"""Measure the tokens that `LocalEmbedder` embeds in a CPU second, with each `precision`.

The texts are the chunks of the shipped samples, one per 15 s of a session. Rounds of the two
alternate in one process. Each has one thread, and all its CPU time counts. The limit is the model alone
on the same tokens, without tokenizer, padding and pooling.

    python -m benchmarks.embedding
"""

from __future__ import annotations

import math
import statistics
import time
from itertools import groupby

from benchmarks.table import Figure, show

ROUNDS = 3
REPEATS = 2
TOGETHER = 16
GAIN = 1.9
"""The bar where onnxruntime multiplies int8 at full speed: on x86, processors with VNNI."""


def texts() -> list[str]:
    from autoplay_rag.content.render import render
    from benchmarks.retrieval import SAMPLES, WINDOW, read, windows

    sessions, _ = read(*SAMPLES)
    return [
        render(window) for payloads in sessions.values() for window in windows(payloads, WINDOW)
    ]


def _model_alone(embedder, texts: list[str]) -> float:
    """Tokens per CPU second of the model itself, on batches of equally long texts."""
    import numpy as np

    from autoplay_rag.embedders.local import MAX_TOKENS, _encode

    run = embedder._load()  # noqa: SLF001 - the model without what is around it
    rows = sorted((row[:MAX_TOKENS] for row in _encode(texts)), key=len)
    most = 1 if embedder.model.endswith("w8a8") else TOGETHER  # int8 takes one text at a time
    started = time.process_time()
    for _, equal in groupby(rows, key=len):
        same = list(equal)
        for start in range(0, len(same), most):
            ids = np.array(same[start : start + most], np.int64)
            run(ids, np.ones_like(ids))
    return sum(map(len, rows)) / (time.process_time() - started)


def main() -> list[Figure]:
    from autoplay_rag.embedders import LocalEmbedder
    from autoplay_rag.embedders.minilm_int8 import products_saturate

    given = texts() * REPEATS
    embedders = {
        "fp32": LocalEmbedder(threads=1),
        "int8": LocalEmbedder(threads=1, precision="int8"),
    }
    rates: dict[str, list[float]] = {name: [] for name in embedders}
    vectors = {}
    for embedder in embedders.values():
        embedder.embed_sync(given[:1])  # loads the model
    for _ in range(ROUNDS):
        for name, embedder in embedders.items():
            before, started = embedder.tokens_used, time.process_time()
            vectors[name] = embedder.embed_sync(given)
            used = embedder.tokens_used - before
            rates[name].append(used / (time.process_time() - started))
    alone = {name: _model_alone(embedder, given) for name, embedder in embedders.items()}
    ratios = [int8 / fp32 for fp32, int8 in zip(*rates.values(), strict=True)]
    ratio = statistics.median(ratios)
    cosines = [
        math.fsum(x * y for x, y in zip(one, other, strict=True))
        for one, other in zip(*vectors.values(), strict=True)
    ]
    bar = 1.0 if products_saturate() else GAIN
    fp32, int8 = (statistics.median(found) for found in rates.values())
    return [
        Figure(
            'tokens per CPU second, LocalEmbedder(precision="int8")',
            f"{int8:,.0f}, {ratio:.2f} times ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"cosine to fp32 {statistics.fmean(cosines):.3f}, least {min(cosines):.3f}",
            f"fp32 {fp32:,.0f}; the model alone: int8 {alone['int8']:,.0f}, fp32 {alone['fp32']:,.0f}",
            f"{bar} times",
            ratio >= bar,
        )
    ]


if __name__ == "__main__":
    show(main())
