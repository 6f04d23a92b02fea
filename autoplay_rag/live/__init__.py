"""What each session is doing now: the latest actions, summaries and chat turns, in bounded memory."""

from autoplay_rag.live.sessions import LiveEvent, LiveSession, LiveSessions

__all__ = ["LiveEvent", "LiveSession", "LiveSessions"]
