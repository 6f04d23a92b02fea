"""A local connector for development.

`LocalConnector` replays a recording over real HTTP. `samples` is a recording to start with, and
`questions` are questions about it.
"""

from autoplay_rag.devserver.connector import LocalConnector
from autoplay_rag.devserver.shipped import Question, questions, samples

__all__ = ["LocalConnector", "Question", "questions", "samples"]
