"""`benchmarks/embedding.py`: its texts, and a short run."""

from __future__ import annotations

from benchmarks import embedding


def test_a_run_compares_the_two_precisions(monkeypatch):
    texts = embedding.texts()
    assert len(texts) >= 70
    monkeypatch.setattr(embedding, "texts", lambda: texts[:5])
    monkeypatch.setattr(embedding, "ROUNDS", 1)
    (figure,) = embedding.main()
    assert "cosine to fp32 0.99" in figure.measured
    assert figure.baseline.startswith("fp32 ")
