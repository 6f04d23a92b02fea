"""The ways in which the worker finds the nearest chunks: by ids, by the index, and by Chroma alone.

Small collections are always compared whole. A script in a process of its own lowers these limits,
so that each way is taken with few chunks.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest

from autoplay_rag.stores.chroma.database import Database

SCRIPT = """
import json, random, sys
from collections import Counter
from pathlib import Path
import numpy as np
from autoplay_rag.stores import Filter
from autoplay_rag.stores.chroma import folder as module
from autoplay_rag.stores.chroma.frames import Delete, Failed, Query, Score, Upsert
from autoplay_rag.stores.chroma.store import where_of

way, count, dimension, exact, searches = sys.argv[2], *map(int, sys.argv[3:])
if exact:
    module._EXACT, module._ALWAYS_EXACT, module._WIDEST = exact, exact, count // 4
    module._MOST_NAMED = count // 10
folder = module.Folder(Path(sys.argv[1]))
if way == "chroma":
    folder._database._readable = False
taken = Counter()
for name in ("_search_index", "_filtered_afterwards", "_exact_scores", "_nearest_by_chroma"):
    def counted(self, *arguments, name=name, original=getattr(module._Collection, name), **among):
        taken.update([name, *among])
        return original(self, *arguments, **among)
    setattr(module._Collection, name, counted)

def ask(kind, **values):
    reply = folder.answer(kind(collection="test", model="m", timeout=1.0, **values))
    assert not isinstance(reply, Failed), reply
    return reply

random.seed(12)
numbers = np.random.default_rng(12)
centres = numbers.normal(size=(10, dimension))
vectors, metadatas = [], []
for number in range(count):
    apart = random.random() < 0.06
    centre = 3 - centres[0] if apart else centres[random.randrange(10)]
    vectors.append(centre + 0.4 * numbers.normal(size=dimension))
    metadatas.append({
        "product_id": "apart" if apart else "main",
        "user_id": f"u{random.randrange(count // 20)}",
        "kind": random.choice(["actions"] * 9 + ["summary"]),
        "started_at": float(number), "ended_at": number + 0.5,
    })
vectors = np.array(vectors, np.float32)
ids = [f"c{number}" for number in range(count)]
for start in range(0, count, 500):
    part = slice(start, start + 500)
    ask(Upsert, ids=ids[part], texts=ids[part], metadatas=[dict(m) for m in metadatas[part]],
        vectors=vectors[part].tobytes(), dimension=dimension)
gone = set(random.sample(range(count), count // 10))
ask(Delete, ids=[ids[number] for number in gone])
unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
found_of, wanted_of = 0, 0
for _ in range(searches):
    span = random.choice([0.1, 0.5, 1]) * count
    since = random.random() * count
    given = {
        "product_id": random.choice(["main", "apart", None]),
        "kind": random.choice(["actions", "summary", None, None]),
        "user_id": random.choice([f"u{random.randrange(count // 20)}", None, None]),
        "since": random.choice([since, None]), "until": random.choice([since + span, None]),
    }
    wanted_filter = Filter(**given)
    k = random.choice([1, 10, 10, 50, count // 3, count])
    vector = vectors[random.randrange(count)] + 0.1 * numbers.normal(size=dimension)
    vector = vector.astype(np.float32)
    scores = unit @ (vector / np.linalg.norm(vector))
    passing = [n for n in range(count) if n not in gone and wanted_filter.matches(metadatas[n])]
    best = {ids[n] for n in sorted(passing, key=lambda n: -scores[n])[:k]}
    hits = ask(Query, vector=vector.tobytes(), k=k, conditions=wanted_filter.conditions(),
               where=where_of(wanted_filter)).hits
    assert [hit[2] for hit in hits] == sorted((hit[2] for hit in hits), reverse=True)
    for chunk_id, text, score, metadata in hits:
        number = int(chunk_id[1:])
        assert (text, metadata) == (chunk_id, metadatas[number])
        assert number in passing
        assert abs(score - scores[number]) < 1e-4
    if way == "database":
        assert len(hits) == len(best), (given, k)
    found_of += len(best & {hit[0] for hit in hits})
    wanted_of += len(best)
print(json.dumps([found_of / wanted_of, taken]))
"""


def searched(folder, way: str, *, count: int, dimension: int, exact: int, searches: int):
    """Run random searches; returns the recall, and how often each way was taken."""
    numbers = (count, dimension, exact, searches)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), way, *map(str, numbers)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    recall, taken = json.loads(done.stdout)
    return recall, taken


def test_each_way_finds_what_a_comparison_with_all_chunks_finds(tmp_path):
    recall, taken = searched(tmp_path, "database", count=400, dimension=8, exact=20, searches=300)
    assert recall >= 0.99
    assert set(taken) == {"_search_index", "ids", "where", "_filtered_afterwards", "_exact_scores"}
    named, filtered = taken.pop("ids"), taken.pop("where")
    assert min(named, filtered) >= 3
    assert all(times >= 20 for times in taken.values())


def test_a_database_with_other_tables_leaves_the_search_to_chroma(tmp_path):
    recall, taken = searched(tmp_path, "chroma", count=400, dimension=8, exact=20, searches=100)
    assert recall >= 0.98
    assert taken["_nearest_by_chroma"] == 100
    assert "_filtered_afterwards" not in taken


@pytest.mark.slow
def test_recall_with_filters_that_depend_on_the_vectors(tmp_path):
    recall, taken = searched(tmp_path, "database", count=8000, dimension=64, exact=0, searches=300)
    assert recall >= 0.98
    assert all(times >= 10 for times in taken.values())


def database(tmp_path, *statements: str) -> Database:
    with sqlite3.connect(tmp_path / "chroma.sqlite3") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return Database(tmp_path)


def test_a_database_with_other_columns_is_not_readable(tmp_path):
    found = database(
        tmp_path,
        "CREATE TABLE segments (id, scope, collection)",
        "CREATE TABLE embeddings (id, segment_id, embedding_id)",
        "CREATE TABLE embedding_metadata (id, key, value)",
    )
    assert not found.readable
    found.close()


def test_a_database_that_is_damaged_is_an_error(tmp_path):
    (tmp_path / "chroma.sqlite3").write_bytes(b"not a database " * 1000)
    found = Database(tmp_path)
    with pytest.raises(sqlite3.DatabaseError):
        _ = found.readable
    found.close()
    found.close()


@pytest.mark.slow
def test_a_database_that_is_locked_for_long_is_not_taken_for_one_with_other_tables(tmp_path):
    found = database(
        tmp_path,
        "CREATE TABLE segments (id, scope, collection)",
        "CREATE TABLE embeddings (id, segment_id, embedding_id)",
        "CREATE TABLE embedding_metadata (id, key, string_value, int_value, float_value, bool_value)",
        "CREATE TABLE collections (id, dimension)",
        "CREATE TABLE embeddings_queue (seq_id, topic)",
        "CREATE TABLE max_seq_id (seq_id, segment_id)",
    )
    other = sqlite3.connect(tmp_path / "chroma.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        _ = found.readable
    other.close()
    assert found.readable
    assert found.contents("none", ["a"]) == {}, "an older Chroma has no table of lists"
    found.close()
