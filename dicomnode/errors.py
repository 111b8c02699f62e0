"""Every error that the node raises on purpose, grouped by what happens next.

::

    DicomNodeError
    ├─ ConfigError       stop at start-up; the operator mends the configuration
    ├─ InputError        the object is set aside with its reason, never retried
    │    UnreadableInstanceError, UnsupportedSeriesError, GeometryError,
    │    CorrectionError, UpdateRejectedError, ModelFormatError
    ├─ PeerError         another system failed; retried with back-off
    │    AssociationError, DeliveryError, AggregatorError
    └─ ResourceError     this machine is short of something; pause, alert, retry
         SpoolFullError, GpuMemoryError, DatabaseError, LeaseLostError

Any other exception is a bug. A message says what was found, what was expected and which UID;
it never carries a patient's name, birth date or identifier.
"""


class DicomNodeError(Exception):
    """Root of the errors that the node raises on purpose."""


class ConfigError(DicomNodeError):
    """The configuration cannot be used; the process stops at start-up."""


class InputError(DicomNodeError):
    """The input itself is at fault: it is set aside with the reason and not retried."""


class UnreadableInstanceError(InputError):
    """Bytes that are no DICOM object, or one without its identifying attributes."""


class InstanceMismatchError(UnreadableInstanceError):
    """A data set that names another SOP class or instance than its sender announced."""


class UnsupportedSeriesError(InputError):
    """A series that no model takes, or of a kind that the node does not read."""


class GeometryError(InputError):
    """Slices that do not form one regular volume in patient space."""


class CorrectionError(InputError):
    """A segmentation that cannot be read as a correction without guessing."""


class UpdateRejectedError(InputError):
    """A weight update or release that fails a check; ``code`` is stable for machines."""

    def __init__(self, message: str, *, code: str = "rejected") -> None:
        super().__init__(message)
        self.code = code


class ModelFormatError(InputError):
    """A model package, or its weights, that does not say what it must."""


class PeerError(DicomNodeError):
    """Another system did not do its part; the job is retried with back-off."""


class AssociationError(PeerError):
    """No DICOM association: unreachable, refused or aborted."""


class DeliveryError(PeerError):
    """The peer was reached and did not take the object; ``status`` is its DIMSE answer, if it gave one."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class AggregatorError(PeerError):
    """The aggregator was unreachable or answered with a fault that may pass."""


class ResourceError(DicomNodeError):
    """This machine lacks something; work pauses, an alert is raised, the job is retried."""


class SpoolFullError(ResourceError):
    """The disk of the spool is below its watermark, or a write found no room."""


class GpuMemoryError(ResourceError):
    """The accelerator has too little memory, after every fall-back."""


class DatabaseError(ResourceError):
    """The database did not answer or refused a transaction."""


class LeaseLostError(ResourceError):
    """The job belongs to another worker by now; what was done here is dropped, nothing is recorded."""
