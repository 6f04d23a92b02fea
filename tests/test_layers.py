"""No module imports upwards: each room knows the rooms below it and no others.

Every import counts: at module level, inside a function, under `TYPE_CHECKING`, and a module named in
a string, as in lazy exports.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import autoplay_rag

ROOT = Path(autoplay_rag.__file__).parent
# From the bottom up. Rooms separated by | may not import each other.
LAYERS = """
errors payloads decoding _helpers
content
connector | journal | stores | embedders | live
search | maintenance | sources | cluster
kafka
ingest | remote
loading
devserver
serve
relay
testing frames cli __main__ __init__
""".strip().splitlines()
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer.replace("|", "").split()}
MODULES = sorted(ROOT.rglob("*.py"))
NAMES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in MODULES
} - {"autoplay_rag"}


def room_of(module: str) -> str:
    """The room of a dotted name such as `autoplay_rag.stores.base`; "" outside the package."""
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0] or "__init__"
    if package != "autoplay_rag":
        return ""
    return room if room.startswith("__") or not room.startswith("_") else "_helpers"


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every module that a source file imports or names in a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: import by the full name"
            for name in node.names:  # a name imported from a package may be a module
                full = f"{node.module}.{name.name}"
                yield node.lineno, full if full in NAMES else str(node.module)
        elif isinstance(node, ast.Constant) and node.value in NAMES:
            yield node.lineno, node.value


def upwards(room: str, source: str) -> list[str]:
    """Return the imports in a source file that a module of this room must not have."""
    return [
        f"line {line}: {room} imports {module}"
        for line, module in imported(ast.parse(source))
        if (other := room_of(module)) and not may_import(room, other)
    ]


def may_import(room: str, other: str) -> bool:
    if room == other or RANK[other] < RANK[room]:
        return True
    return RANK[other] == RANK[room] and "|" not in LAYERS[RANK[room]]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upwards(path):
    room = room_of(f"autoplay_rag.{path.relative_to(ROOT).parts[0].removesuffix('.py')}")
    assert room in RANK, f"{room} stands in no layer: add it to LAYERS"
    assert upwards(room, path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "source", "refused"),
    [
        ("stores", "import autoplay_rag.ingest.pipeline", True),
        ("stores", "import httpx, autoplay_rag.embedders", True),
        ("stores", "from autoplay_rag.search.hits import Hit", True),
        ("stores", "from autoplay_rag import search", True),
        ("stores", "from autoplay_rag import IngestPipeline", True),
        ("stores", "def late():\n    from autoplay_rag.search.hits import Hit", True),
        ("stores", "if TYPE_CHECKING:\n    from autoplay_rag.embedders import base", True),
        ("stores", "MODULES = {'Hit': 'autoplay_rag.search.hits'}", True),
        ("live", "from autoplay_rag.connector.client import AsyncConnectorClient", True),
        ("_helpers", "from autoplay_rag.content import keys", True),
        ("stores", "from autoplay_rag.content.chunks import Chunk", False),
        ("stores", "from autoplay_rag.stores.base import Match", False),
        ("stores", "from autoplay_rag import _describe, errors", False),
        ("stores", "import chromadb", False),
        ("_helpers", "from autoplay_rag.errors import ConfigurationError", False),
        ("cli", "from autoplay_rag import IngestPipeline", False),
    ],
)
def test_what_is_refused(room, source, refused):
    assert bool(upwards(room, source)) is refused
