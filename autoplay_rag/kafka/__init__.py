"""Kafka as the queue: payloads come out of a topic, and the journal in PostgreSQL takes them in.

| module | task |
|---|---|
| `address` | the address of a topic |
| `settings` | the settings of Kafka's clients |
| `messages` | a payload as a message, and back |
| `admin` | what the broker says about a topic |
"""
