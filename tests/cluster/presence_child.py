"""A process that shows that it runs, until it is killed.

python presence_child.py DSN SCHEMA NAME
"""

from __future__ import annotations

import asyncio
import sys

from autoplay_rag.cluster.presence import Presence
from autoplay_rag.stores.postgres.dsn import parameters_of
from autoplay_rag.stores.postgres.link import Link

dsn, schema, name = sys.argv[1:]
asyncio.run(Presence(Link(parameters_of(dsn), 1, 10.0), schema, name).run())
