"""The latest actions, summaries and chat turns of each session, in bounded memory."""

from autoplay_rag.live.feed import Feed, FeedEvent, Subscription
from autoplay_rag.live.sessions import LiveEvent, LiveSession, LiveSessions

__all__ = ["Feed", "FeedEvent", "LiveEvent", "LiveSession", "LiveSessions", "Subscription"]
