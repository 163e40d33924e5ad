"""Every error a caller can cause or meet, drawn once.

    VesaliusError                     code, sentence, the parameter at fault
    ├── InvalidRequest                invalid_request        an option, label or field is wrong
    ├── FilmError                     a film that cannot be used
    │   ├── FilmUnreadable            film_unreadable        recognised, but broken or truncated
    │   ├── FilmUnsupported           film_unsupported       a format or codec that has not been tested
    │   └── FilmTooLarge              film_too_large         bytes, pixels or frames over the limit
    ├── CheckpointError
    │   ├── CheckpointNotFound        checkpoint_not_found
    │   └── CheckpointRefused         checkpoint_refused     missing, unexpected or executable content
    ├── AdapterError
    │   ├── AdapterNotFound           adapter_not_found
    │   └── AdapterRefused            adapter_refused        wrong base, unbound tensor, pickled weight, unknown file
    ├── ManifestError                 manifest_invalid       names the rows and the remedy
    └── ServiceError
        ├── Unauthorized              unauthorized           no key, or one that is not known
        ├── Forbidden                 forbidden              a key without the scope
        ├── Overloaded                overloaded             carries retry_after_s
        ├── DeadlineExceeded          deadline_exceeded
        └── EngineUnavailable         engine_unavailable

Messages are sentences of ours that say what is wrong and what to do; a library's own text is never
passed on. `serving` maps the codes to HTTP status in one table.
"""

from __future__ import annotations


class VesaliusError(Exception):
    """Base of all errors: a stable `code`, a sentence for people, and the parameter at fault if there is one."""

    code = "vesalius_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(VesaliusError):
    code = "invalid_request"


class FilmError(VesaliusError):
    code = "film_error"


class FilmUnreadable(FilmError):
    code = "film_unreadable"


class FilmUnsupported(FilmError):
    code = "film_unsupported"


class FilmTooLarge(FilmError):
    code = "film_too_large"


class CheckpointError(VesaliusError):
    code = "checkpoint_error"


class CheckpointNotFound(CheckpointError):
    code = "checkpoint_not_found"


class CheckpointRefused(CheckpointError):
    code = "checkpoint_refused"


class AdapterError(VesaliusError):
    code = "adapter_error"


class AdapterNotFound(AdapterError):
    code = "adapter_not_found"


class AdapterRefused(AdapterError):
    code = "adapter_refused"


class ManifestError(VesaliusError):
    code = "manifest_invalid"


class ServiceError(VesaliusError):
    code = "service_error"


class Unauthorized(ServiceError):
    code = "unauthorized"


class Forbidden(ServiceError):
    code = "forbidden"


class Overloaded(ServiceError):
    """The queue is full; `retry_after_s` is when room is expected, in seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"


class EngineUnavailable(ServiceError):
    code = "engine_unavailable"
