"""A statement for SQLite as a statement for PostgreSQL. Pure.

Most statements of the journal's tables are the same for both. This covers the rest:

| SQLite | PostgreSQL |
|---|---|
| `?`, `:name` | `%s`, `%(name)s` |
| `x IN (SELECT value FROM json_each(?))` | `x = ANY(%s)` |
| `CAST(value AS INTEGER) FROM json_each(?)` | `unnest(%s::bigint[])` |
| `INSERT OR IGNORE INTO ...` | `INSERT INTO ... ON CONFLICT DO NOTHING` |
| `max(a, b)`, `min(a, b)` | `greatest(a, b)`, `least(a, b)` |
| `a IS 3`, `a IS NOT 3` | `a IS NOT DISTINCT FROM 3`, `a IS DISTINCT FROM 3` |
| `metadata ->> '$.email'` | `(metadata::json ->> 'email')` |
| `a CROSS JOIN b ON ...` (a fixed order) | `a JOIN b ON ...` |
| `INDEXED BY ...`, `NOT INDEXED`, `+column` (hints) | nothing |
| `LIMIT -1` | no limit |
| `user` (a reserved word) | `"user"` |

`min` and `max` of SQLite are NULL if one argument is NULL. The statements do not depend on that.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

__all__ = ["translated"]

_PARAMETER: Final = r"\?|:\w+"
_RULES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"%", r"%%"),
        (r" (?:INDEXED BY \w+|NOT INDEXED)\b", r""),
        (rf"\bNOT IN \(SELECT value FROM json_each\(({_PARAMETER})\)\)", r"<> ALL(\1)"),
        (rf"\bIN \(SELECT value FROM json_each\(({_PARAMETER})\)\)", r"= ANY(\1)"),
        (
            rf"\bCAST\(value AS INTEGER\) FROM json_each\(({_PARAMETER})\)",
            r"unnest(\1::bigint[])",
        ),
        (r"\bjson_group_array\((\w+)\)", r"array_agg(\1)"),
        (r"\bCROSS JOIN (\w+(?: AS \w+)?) ON\b", r"JOIN \1 ON"),
        (r"\bmin\((?=[^()]*,)", r"least("),
        (r"\bmax\((?=[^()]*,)", r"greatest("),
        (r"\bIS NOT (?=[\d'])", r"IS DISTINCT FROM "),
        (r"\bIS (?=[\d'])", r"IS NOT DISTINCT FROM "),
        (r"([\w.]+) ->> '\$\.(\w+)'", r"(\1::json ->> '\2')"),
        (r"\binstr\(", r"strpos("),
        (r"\+(?=[a-z]+\.)", r""),
        (r"\bLIMIT \?", r"LIMIT nullif(?, -1)"),
        (r"(?<!\")\buser\b(?!\")", r'"user"'),
        (r"(?<!:):([a-z]\w*)", r"%(\1)s"),
        (r"\?", r"%s"),
    )
)
_IGNORE: Final = "INSERT OR IGNORE INTO"


@lru_cache(maxsize=2000)
def translated(sql: str) -> str:
    """Return a statement for PostgreSQL, with the parameters of psycopg.

    Args:
        sql: A statement for SQLite. Its texts in quotes have no `?`, and no `:` before a letter.

    Example:
        >>> translated("SELECT user FROM visit WHERE lane IN (SELECT value FROM json_each(?)) LIMIT ?")
        'SELECT "user" FROM visit WHERE lane = ANY(%s) LIMIT nullif(%s, -1)'
        >>> translated("INSERT OR IGNORE INTO model (name) VALUES (:name)")
        'INSERT INTO model (name) VALUES (%(name)s) ON CONFLICT DO NOTHING'
    """
    if sql.startswith(_IGNORE):
        sql = f"INSERT INTO{sql.removeprefix(_IGNORE)} ON CONFLICT DO NOTHING"
    for pattern, replacement in _RULES:
        sql = pattern.sub(replacement, sql)
    return sql
