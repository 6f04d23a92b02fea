"""Work on a journal and its store as a whole: comparing, backing up, restoring, forgetting.

`verify`, `backup`, `forget` and `reembed` of `IngestPipeline` begin it. `restore` and
`autoplay_rag.copy_store` need no pipeline.
"""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.maintenance.backup import BackupReport
    from autoplay_rag.maintenance.progress import Progress
    from autoplay_rag.maintenance.receipt import Receipt
    from autoplay_rag.maintenance.report import CopyReport, ReembedReport, VerifyReport
    from autoplay_rag.maintenance.restoring import RestoreReport, check_backup, restore

__all__ = [
    "BackupReport",
    "CopyReport",
    "Progress",
    "Receipt",
    "ReembedReport",
    "RestoreReport",
    "VerifyReport",
    "check_backup",
    "restore",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "BackupReport": "autoplay_rag.maintenance.backup",
        "CopyReport": "autoplay_rag.maintenance.report",
        "Progress": "autoplay_rag.maintenance.progress",
        "Receipt": "autoplay_rag.maintenance.receipt",
        "ReembedReport": "autoplay_rag.maintenance.report",
        "RestoreReport": "autoplay_rag.maintenance.restoring",
        "VerifyReport": "autoplay_rag.maintenance.report",
        "check_backup": "autoplay_rag.maintenance.restoring",
        "restore": "autoplay_rag.maintenance.restoring",
    },
)
