"""The inspector: pages for whoever runs the server. Rendered here; scripts only make them move.

One module for each page; `pages.py` has what they share, `templates/` their HTML and `static/` their
style and scripts. Nothing on a page scans what is stored.
"""

from autoplay_rag.serve.inspector import (
    dead_letters,
    events,
    overview,
    people,
    search,
    sessions,
    settings,
    signing,
    static,
)

__all__ = ["ROUTERS"]

ROUTERS = [
    part.router
    for part in (
        overview, sessions, search, people, dead_letters, settings, events, signing, static,
    )
]  # fmt: skip
