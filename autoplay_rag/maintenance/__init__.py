"""Work on a journal and its store as a whole: comparing, backing up, restoring, forgetting.

`IngestPipeline.verify`, `IngestPipeline.backup` and `IngestPipeline.forget` begin it. `restore` needs no pipeline.
"""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.maintenance.backup import BackupReport
    from autoplay_rag.maintenance.receipt import Receipt
    from autoplay_rag.maintenance.report import VerifyReport
    from autoplay_rag.maintenance.restoring import RestoreReport, check_backup, restore

__all__ = ["BackupReport", "Receipt", "RestoreReport", "VerifyReport", "check_backup", "restore"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "BackupReport": "autoplay_rag.maintenance.backup",
        "Receipt": "autoplay_rag.maintenance.receipt",
        "RestoreReport": "autoplay_rag.maintenance.restoring",
        "VerifyReport": "autoplay_rag.maintenance.report",
        "check_backup": "autoplay_rag.maintenance.restoring",
        "restore": "autoplay_rag.maintenance.restoring",
    },
)
