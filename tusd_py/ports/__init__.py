"""The contracts between the layers: every Protocol that a service or the worker is handed, and their data.

Adapters subclass these explicitly, so that the class line lists their capabilities and the type
checker reports a missing method where the adapter is built. Nothing here imports an adapter.
"""

from tusd_py.ports.checks import Checkable, CheckResult, Outcome
from tusd_py.ports.objects import (
    NO_DIGESTS,
    Digests,
    DownloadHeaders,
    ListedObject,
    LocalFile,
    ObjectIdentity,
    ObjectSpec,
    PartRecord,
    PresignedUrl,
    Segment,
    StoredObject,
    UnfinishedObject,
)
from tusd_py.ports.queue import (
    LARGE_BYTES,
    EndpointStats,
    Job,
    JobKind,
    JobState,
    Outage,
    Probe,
    QueueStats,
)
from tusd_py.ports.reconcile import StagedPartial, UploadRecord
from tusd_py.ports.records import (
    AttemptView,
    ListPosition,
    NewUpload,
    TransferOrder,
    TransferView,
)
from tusd_py.ports.requests import Authenticator, Body
from tusd_py.ports.staging import StagedFile, Staging, StagingFile, StagingIdentity
from tusd_py.ports.stores import BatchStore, MeasuredStore, ObjectStore, PartStore, TransferState

__all__ = [
    "LARGE_BYTES",
    "NO_DIGESTS",
    "AttemptView",
    "Authenticator",
    "BatchStore",
    "Body",
    "CheckResult",
    "Checkable",
    "Digests",
    "DownloadHeaders",
    "EndpointStats",
    "Job",
    "JobKind",
    "JobState",
    "ListPosition",
    "ListedObject",
    "LocalFile",
    "MeasuredStore",
    "NewUpload",
    "ObjectIdentity",
    "ObjectSpec",
    "ObjectStore",
    "Outage",
    "Outcome",
    "PartRecord",
    "PartStore",
    "PresignedUrl",
    "Probe",
    "QueueStats",
    "Segment",
    "StagedFile",
    "StagedPartial",
    "Staging",
    "StagingFile",
    "StagingIdentity",
    "StoredObject",
    "TransferOrder",
    "TransferState",
    "TransferView",
    "UnfinishedObject",
    "UploadRecord",
]
