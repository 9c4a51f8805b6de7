"""Ask the application before something happens to an upload, and take from its reply what it may change."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.config.object_keys import form_problems, length_problems
from tusd_py.errors import HookFailed, HookInvalid, InvalidMetadata, TerminationRejected, UploadRejected
from tusd_py.ports.hooks import FileInfoChanges, HookEvent, HookReply, HookUpload
from tusd_py.protocol.events import HookKind
from tusd_py.protocol.fields import is_upload_token
from tusd_py.protocol.metadata import file_name, file_type, parse_metadata
from tusd_py.protocol.upload import Concat

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.config.sections import HooksConfig
    from tusd_py.metrics import Metrics
    from tusd_py.ports import NewUpload
    from tusd_py.ports.hooks import HookRequest, HookResponse, Hooks
    from tusd_py.protocol.upload import Upload

log = structlog.get_logger(__name__)

_SUCCESS: Final = range(200, 300)


class BlockingHooks:
    """Whoever is asked, and the rules that hold for asking."""

    def __init__(self, hooks: Hooks, config: HooksConfig, metrics: Metrics) -> None:
        self._hooks = hooks
        self._config = config
        self._kinds = frozenset(config.events)
        self._metrics = metrics

    def wants(self, kind: HookKind) -> bool:
        """Return whether the hook is to be asked."""
        return kind in self._kinds

    @property
    def timeout_seconds(self) -> float:
        """How long an answer may take, all tries together."""
        return self._config.timeout

    async def ask(self, kind: HookKind, upload: HookUpload, request: HookRequest) -> HookReply:
        """Return the reply of a hook; the one that changes nothing if it fails and `on_error` is "allow".

        Raises:
            HookFailed: there was no reply in time, and `on_error` is "deny".
            HookInvalid: the reply cannot be used.
        """
        try:
            with self.judging(kind, upload.id):
                async with asyncio.timeout(self._config.timeout):
                    reply = await self._hooks.ask(HookEvent(kind=kind, upload=upload, request=request))
        except (TimeoutError, HookFailed) as error:
            log.warning("hook_failed", hook=kind, upload_id=upload.id, reason=str(error) or "no reply in time")
            self._metrics.hooks.labels(kind.value, "failed").inc()
            if self._config.on_error == "allow":
                return HookReply()
            raise HookFailed(hook=kind.value) from error
        self._metrics.hooks.labels(kind.value, "replied").inc()
        return reply

    @contextlib.contextmanager
    def judging(self, kind: HookKind, upload_id: str = "") -> Iterator[None]:
        """Count a reply that turns out not to be usable, and log what is wrong with it."""
        try:
            yield
        except HookInvalid as error:
            log.error("hook_invalid", hook=kind, upload_id=upload_id, reason=str(error))  # noqa: TRY400 -- not ours
            self._metrics.hooks.labels(kind.value, "invalid").inc()
            raise

    async def close(self) -> None:
        """Close connections."""
        await self._hooks.close()

    async def may_create(self, new: NewUpload, partials: Sequence[Upload], request: HookRequest) -> HookReply:
        """Ask `pre-create`; `partials` are those of a final upload.

        Raises:
            UploadRejected: it is not to be created.
            HookFailed, HookInvalid: see `ask`.
        """
        reply = await self.ask(HookKind.PRE_CREATE, upload_to_be(new, partials), request)
        if reply.reject_upload:
            raise UploadRejected(reply.response)
        with self.judging(HookKind.PRE_CREATE):
            _demand_success(reply.response)
        return reply

    async def may_terminate(self, upload: HookUpload, request: HookRequest) -> HookResponse:
        """Ask `pre-terminate`, and return what the response is to be like.

        Raises:
            TerminationRejected: it is to stay.
            HookFailed, HookInvalid: see `ask`.
        """
        reply = await self.ask(HookKind.PRE_TERMINATE, upload, request)
        if reply.reject_termination:
            raise TerminationRejected(reply.response)
        with self.judging(HookKind.PRE_TERMINATE, upload.id):
            _demand_success(reply.response)
        return reply.response


def _demand_success(response: HookResponse) -> None:
    # Where nothing is refused, a client that is told of a failure would do it again.
    if response.status_code and response.status_code not in _SUCCESS:
        raise HookInvalid(f"HTTPResponse.StatusCode is {response.status_code}, and the request is not rejected.")


def upload_to_be(new: NewUpload, partials: Sequence[Upload] = ()) -> HookUpload:
    """Return an upload that is about to be created, as hooks see it. It has no id yet."""
    size = new.length
    if new.concat is Concat.FINAL:
        lengths = [partial.length for partial in partials if partial.length is not None]
        size = sum(lengths) if len(lengths) == len(partials) else None
    return HookUpload(
        id="",
        size=size,
        offset=0,
        metadata=_texts(new.metadata),
        is_partial=new.concat is Concat.PARTIAL,
        is_final=new.concat is Concat.FINAL,
        partial_uploads=[str(partial.id) for partial in partials] if new.concat is Concat.FINAL else None,
    )


def hook_upload(
    upload: Upload, *, storage: Mapping[str, str] | None = None, partial_uploads: Sequence[str] | None = None
) -> HookUpload:
    """Return an upload as hooks see it."""
    return HookUpload(
        id=str(upload.id),
        size=upload.length,
        offset=upload.offset,
        metadata=_texts(upload.metadata),
        is_partial=upload.concat is Concat.PARTIAL,
        is_final=upload.concat is Concat.FINAL,
        partial_uploads=partial_uploads,
        storage=storage,
    )


def _texts(metadata: str | None) -> dict[str, str]:
    pairs = parse_metadata(metadata, max_bytes=len(metadata or ""))
    return {key: value.decode("utf-8", errors="replace") for key, value in pairs.items()}


def with_changes(new: NewUpload, changes: FileInfoChanges, config: Config) -> NewUpload:
    """Return the upload to be with the metadata and the key that `pre-create` wants. Its token is the caller's.

    Raises:
        HookInvalid: the metadata or the key cannot be used.
    """
    if changes.metadata is not None:
        header = encode_metadata(changes.metadata)
        try:
            pairs = parse_metadata(header, max_bytes=config.limits.max_metadata)
            if [*pairs] != [*changes.metadata]:
                raise InvalidMetadata("A key is empty, or has a comma or a space.")
            new = replace(new, metadata=header, filename=file_name(pairs), content_type=file_type(pairs))
        except InvalidMetadata as error:
            raise HookInvalid(f"ChangeFileInfo.MetaData cannot be used: {error.detail}") from error
    if changes.storage_path is not None:
        new = replace(new, object_key=checked_key(changes.storage_path, config))
    return new


def encode_metadata(pairs: Mapping[str, str]) -> str | None:
    """Return the Upload-Metadata header with these pairs (tus 1.0.0 §Upload-Metadata), None for none."""
    items = [
        f"{key} {base64.b64encode(value.encode()).decode('ascii')}" if value else key for key, value in pairs.items()
    ]
    return ",".join(items) or None


def checked_token(token: str) -> str:
    """Return the token that `pre-create` wants. Raises `HookInvalid` if it has not the form of one."""
    if not is_upload_token(token):
        raise HookInvalid("ChangeFileInfo.ID has not the form of a token: 22 to 64 letters, digits, - and _, no UUID.")
    return token


def checked_key(path: str, config: Config) -> str:
    """Return the object key that `pre-create` wants, without the `./` that tusd's examples begin with.

    Raises:
        HookInvalid: it leads out of the store, or the store cannot take it.
    """
    key = path.removeprefix("./")
    for problem in itertools.chain(form_problems(key), length_problems(config, key)):
        raise HookInvalid(f"ChangeFileInfo.Storage.Path cannot be used: {problem}.")
    return key
