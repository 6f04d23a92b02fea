"""One run of a pipeline, from `start` to `aclose`.

`running` creates the parts and closes them. In the order in which they act: `opening` (the store),
`resuming` (what an earlier run left), `accepting` (payloads, until they are settled), `showing` (the
live sessions), `draining`. `main_task` is the task in which all of it works. Beside it: `condition`
(ledger and health), `maintaining`, `forgetting`, `periodic`, `model_in_use`, and `replica`, for a
journal that several processes share.
"""
