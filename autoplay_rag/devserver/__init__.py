"""A connector to develop against, on this machine.

`LocalConnector` replays a recording over real HTTP; `samples` and `questions` are a recording
and questions about it to begin with.
"""

from autoplay_rag.devserver.connector import LocalConnector
from autoplay_rag.devserver.shipped import Question, questions, samples

__all__ = ["LocalConnector", "Question", "questions", "samples"]
