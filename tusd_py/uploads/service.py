"""The upload service: what use-cases work with, who may use which upload, and what needs no body.

Every use-case authorises first, before a byte of a body is read and before anything is locked. Longer
ones are functions over the service, in modules of their own: `append`, `creation`, `locate`, `waiting`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.authorization import Action, Principal, Rules, authorize
from tusd_py.errors import StagingDamaged, TusdError, UploadFinishing, UploadGone, UploadNotFound, WrongNode
from tusd_py.protocol.fields import is_upload_token
from tusd_py.protocol.upload import (
    Concat,
    State,
    TokenHash,
    Upload,
    UploadId,
    UploadProtocol,
    check_termination,
)
from tusd_py.uploads.buffers import RATE_WINDOW_SECONDS, BufferBudget
from tusd_py.uploads.kept_requests import kept_request

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.configured_stores import Stores
    from tusd_py.database.lists import UploadLists
    from tusd_py.database.transfers import TransferRequests
    from tusd_py.database.uploads import PostgresUploads
    from tusd_py.locks import LocalLocks
    from tusd_py.ports import AttemptView, ListPosition, Staging, TransferOrder
    from tusd_py.ports.hooks import HookRequest, HookResponse
    from tusd_py.protocol.features import Features
    from tusd_py.uploads.changes import ChangeNotifier
    from tusd_py.uploads.hooks import BlockingHooks

log = structlog.get_logger(__name__)

HIDDEN_IN_LISTS: Final = (State.EXPIRED, State.REMOVING, State.REMOVED)
MAX_ATTEMPTS: Final = 1000
UNANNOUNCED_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Timing:
    """The clock, and times that nobody has to configure."""

    clock: Callable[[], float] = time.monotonic
    rate_window_seconds: float = RATE_WINDOW_SECONDS
    """How long `limits.min_rate` may be missed."""
    advance_retry_seconds: Sequence[float] = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)
    """Between tries to record bytes that are durable while the database is away."""


def hash_token(token: str) -> TokenHash:
    """Return what the database knows of a token."""
    return TokenHash(hashlib.sha256(token.encode("ascii")).digest())


def unannounced_seconds(expires_after_seconds: float) -> float:
    """Return how long an upload may wait whose URL nobody knows; 0, for ever, where nothing expires."""
    return min(UNANNOUNCED_SECONDS, expires_after_seconds)


class UploadService:
    """What every use-case works with, and the use-cases that take no body. Knows no HTTP, no SQL and no adapter."""

    def __init__(  # noqa: PLR0913 -- the collaborators of all use-cases
        self,
        config: Config,
        features: Features,
        *,
        uploads: PostgresUploads,
        lists: UploadLists,
        transfers: TransferRequests,
        staging: Staging,
        stores: Stores,
        locks: LocalLocks,
        changes: ChangeNotifier,
        timing: Timing | None = None,
        hooks: BlockingHooks | None = None,
    ) -> None:
        self.config = config
        self.features = features
        self.uploads = uploads
        self.lists = lists
        self.transfers = transfers
        self.staging = staging
        self.stores = stores
        self.locks = locks
        self.changes = changes
        self.timing = timing or Timing()
        self.hooks = hooks
        """Who is asked before something happens; None if nobody is."""
        self.rules = Rules(config.auth.jwt, config.profiles)
        self.budget = BufferBudget(config.staging)
        self.expires_after_seconds = config.tus.expire_after if features.offers("expiration") else 0.0
        """How long an unfinished upload is kept after its last byte; 0: for ever."""
        self.unannounced_seconds = unannounced_seconds(self.expires_after_seconds)
        """How long one is kept whose URL nobody knows, because the request that makes it may be cut short."""
        self.empty_patches: dict[UploadId, int] = {}
        """How many PATCH requests in a row brought no byte, of uploads that had one."""

    # --- who may use which upload ------------------------------------------------------------------

    async def get_by_token(self, principal: Principal, token: str, action: Action) -> Upload:
        """Return the upload behind a tus URL, for somebody who may use it so.

        Raises:
            UploadNotFound, UploadGone, AccessError.
        """
        upload = await self.uploads.find_by_token(hash_token(token)) if is_upload_token(token) else None
        return self._present(self._permitted(upload, principal, action))

    async def get_by_id(
        self, principal: Principal, upload_id: UploadId, action: Action, *, gone_too: bool = False
    ) -> Upload:
        """Return an upload by its public id, for somebody who may use it so; raise as `get_by_token` does.

        With `gone_too` one that is gone is returned as well.
        """
        upload = self._permitted(await self.uploads.find(upload_id), principal, action)
        return upload if gone_too else self._present(upload)

    async def refresh(self, upload_id: UploadId) -> Upload:
        """Return the upload as it stands now, for somebody who was permitted already.

        Raises:
            UploadNotFound, UploadGone.
        """
        upload = await self.uploads.find(upload_id)
        if upload is None:
            raise self.gone_error()
        return self._present(upload)

    def _permitted(self, upload: Upload | None, principal: Principal, action: Action) -> Upload:
        # An unknown upload is checked as one's own: an invalid token is told so, everybody else gets 404.
        owner, profile = (principal.subject, "") if upload is None else (upload.owner, upload.profile)
        authorize(principal, action, owner, self.rules, profile=profile)
        if upload is None:
            raise UploadNotFound
        return upload

    def _present(self, upload: Upload) -> Upload:
        if upload.gone(datetime.now(UTC)):
            raise self.gone_error()
        return upload

    def gone_error(self) -> TusdError:
        """Return the error for an upload that is there no more."""
        return UploadGone() if self.config.tus.gone_status == UploadGone.status else UploadNotFound()

    def demand_staged_here(self, upload: Upload) -> None:
        """Raise `WrongNode` if another staging directory holds the bytes of an upload."""
        if upload.staging_id != self.staging.identity.id:
            raise WrongNode(upload_id=str(upload.id), staging_id=str(upload.staging_id))

    # --- the true offset ---------------------------------------------------------------------------

    async def status(self, principal: Principal, token: str) -> Upload:
        """Return the upload with its true offset: a request that still writes is ended first.

        Raises:
            UploadNotFound, UploadGone, AccessError: for this client there is no such upload.
            UploadLocked: the writer did not let go in time.
            UploadFinishing: every byte is here, and whether it is complete is not known yet.
            StagingDamaged: acknowledged bytes are not in staging any more.
            WrongNode: its bytes are in another staging directory; nothing was opened or changed.
        """
        upload = await self.get_by_token(principal, token, Action.HEAD)
        if receives_bytes(upload):
            self.demand_staged_here(upload)
            if self.locks.held(upload.id):
                async with self.locks.hold(upload.id, _no_body):
                    upload = await self.settle(await self.refresh(upload.id))
            else:
                upload = await self.settle(upload)
        if upload.finishing:
            # An offset that is the length means success.
            raise UploadFinishing
        return upload

    async def settle(self, upload: Upload) -> Upload:
        """Return the upload as recorded while no other process writes to it.

        Bytes are in the file before the row says so, and another process may move the upload at any moment. So
        a row that is read before and after the look at the file, and is the same, tells what the file should have.

        Raises:
            UploadLocked: another process did not let go in time.
            StagingDamaged: acknowledged bytes are not in staging any more.
        """
        while upload.receiving:
            size = await self._size_when_free(upload.id)
            if size == upload.offset:
                return upload
            before, upload = upload, await self.refresh(upload.id)
            if upload.offset == before.offset and upload.receiving:
                if size < upload.offset:
                    raise StagingDamaged(upload_id=str(upload.id), expected=upload.offset)
                return upload
        return upload

    async def _size_when_free(self, upload_id: UploadId) -> int:
        """Return the size of the staged file once no other process writes to it. Raises `UploadLocked`."""

        async def attempt() -> int | None:
            return self.staging.probe(upload_id)

        return await self.locks.wait_for_file_lock(upload_id, attempt)

    # --- termination -------------------------------------------------------------------------------

    async def terminate(
        self, principal: Principal, token: str, protocol: UploadProtocol | None, request: HookRequest | None = None
    ) -> HookResponse | None:
        """Make an upload gone for everybody; its bytes are removed in the background.

        `protocol` is the one that the request says it is written in, and `request` what hooks and receivers in
        tusd's format are told of it, where there are any. Returns what a hook wants the client to be told.

        A request that still writes to it is ended first and cannot bring it back.

        Raises:
            UploadNotFound, UploadGone, AccessError, UploadHeld, PartialInUse, TransferInProgress, WrongNode.
            UnsupportedVersion: see `check_termination`.
            TerminationRejected, HookFailed, HookInvalid: a hook does not let it be terminated.
        """
        upload = await self.get_by_token(principal, token, Action.TERMINATE)
        check_termination(upload, protocol)
        response = await self._ask_to_terminate(upload, request)
        await self._terminate(upload, request)
        return response

    async def remove(
        self, principal: Principal, upload_id: UploadId, request: HookRequest | None = None, *, force: bool = False
    ) -> None:
        """Terminate an upload by its public id; with `force` a transfer under way is stopped.

        Its owner is a client here as well, so the hook is asked; whoever may remove everybody's uploads is not.

        Raises: as `terminate` does; with force no TransferInProgress.
        """
        upload = await self.get_by_id(principal, upload_id, Action.FORCE if force else Action.REMOVE)
        if principal.anonymous or not self.rules.is_operator(principal):
            await self._ask_to_terminate(upload, request)
        await self._terminate(upload, request, force=force)

    async def _ask_to_terminate(self, upload: Upload, request: HookRequest | None) -> HookResponse | None:
        if self.hooks is None:
            return None
        from tusd_py.uploads.asking import Describer, ask_to_terminate

        assert request is not None  # whoever configures hooks serves requests
        if receives_bytes(upload):
            # The node that has its bytes asks, once the client gets there.
            self.demand_staged_here(upload)
        describer = Describer(self.config, self.uploads, self.stores)
        return await ask_to_terminate(self.hooks, describer, upload, request)

    async def _terminate(self, upload: Upload, request: HookRequest | None, *, force: bool = False) -> None:
        kept = kept_request(self.config, request)
        if not upload.receiving:
            await self.uploads.remove(upload.id, force=force, request=kept)
        else:
            if receives_bytes(upload):
                self.demand_staged_here(upload)
            async with self.locks.hold(upload.id, _no_body):
                await self._size_when_free(upload.id)
                await self.uploads.remove(upload.id, force=force, request=kept)
        log.info("upload_terminated", upload_id=str(upload.id), state=upload.state.value, force=force)

    # --- what applications ask for -----------------------------------------------------------------

    async def newest(
        self,
        principal: Principal,
        *,
        after: ListPosition | None,
        limit: int,
        state: State | None = None,
        everybody: bool = False,
    ) -> Sequence[Upload]:
        """Return the newest uploads of `principal`, or those of everybody, in one state if it is given.

        `after` is the position of the last one of an earlier page.

        Raises:
            AccessError: they are not for `principal`.
        """
        owner = self.listed_owner(principal, everybody=everybody)
        hide = HIDDEN_IN_LISTS if state is None else ()
        return await self.lists.newest(owner, after=after, limit=limit, hide=hide, state=state)

    def listed_owner(self, principal: Principal, *, everybody: bool) -> str | None:
        """Return whose uploads `principal` sees in lists, None for those of everybody. Raises AccessError."""
        owner = None if everybody else principal.subject
        if not principal.anonymous:
            authorize(principal, Action.LIST, owner, self.rules)
        return owner

    async def attempts(self, principal: Principal, upload_id: UploadId) -> Sequence[AttemptView]:
        """Return how the upload's jobs went so far, newest first."""
        upload = await self.get_by_id(principal, upload_id, Action.READ, gone_too=True)
        return await self.transfers.attempts(upload.id, MAX_ATTEMPTS)

    async def commit(self, principal: Principal, upload_id: UploadId) -> Upload:
        """Record that the application keeps an upload; see `TransferRequests.commit`.

        Raises:
            UploadNotFound, UploadGone, AccessError: for this caller there is no such upload.
            NotReady, InvalidTransition: it cannot be committed.
        """
        upload = await self.get_by_id(principal, upload_id, Action.COMMIT)
        committed = await self.transfers.commit(upload.id)
        log.info("upload_committed", upload_id=str(upload.id), again=upload.committed_at is not None)
        return committed

    async def request_transfer(self, principal: Principal, upload_id: UploadId) -> TransferOrder:
        """Have an upload transferred now; see `TransferRequests.request`.

        Raises:
            UploadNotFound, UploadGone, AccessError: for this caller there is no such upload.
            NotReady, InvalidTransition: it cannot be transferred.
        """
        upload = await self.get_by_id(principal, upload_id, Action.TRANSFER)
        order = await self.transfers.request(upload.id)
        if order.queued:
            log.info("transfer_requested", upload_id=str(upload.id), transfer_id=order.transfer_id)
        return order


def receives_bytes(upload: Upload) -> bool:
    """Return whether the upload misses bytes of its own; a final one that waits for its partials does not."""
    return upload.receiving and upload.concat is not Concat.FINAL


def _no_body() -> None:
    """Nothing to stop: requests without a body are over in a moment."""
