"""The pipeline: batches payloads, plans chunks, embeds them and writes them to the store.

The way of a payload: `pipeline`, `run.accepting`, `intake`, the journal, `batching`, `worker`,
`planner`, `chunk_writer` with `embedding` and `retries`, `watermark`. What follows from what is stored:
`upkeep`, `linking`, `retiring`. Other ways in: `clients`, `pulled`, `gaps`, `inflowing`, `importing`.
Several processes: `partitions`, `repairing`, `shared_live`, `asked`, `turns`. One run, from its start to
its end: `run`.
"""
