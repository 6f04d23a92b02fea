"""Worker processes of stores: started, asked one request at a time, and ended by their parent.

| module | process | task |
|---|---|---|
| `interpreter` | yours | which Python program runs a worker |
| `child` | yours | one run of a worker: start, request, end |
| `shared` | yours | one worker shared by several stores, restarted if it dies |
| `pipe` | both | one message as bytes on a pipe |
| `serving` | worker | signals, pipes and the deadline of a request |
"""
