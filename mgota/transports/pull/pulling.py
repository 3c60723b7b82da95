"""One pull: ask for the manifest, decide, download, verify, activate.

Rules:
- what is decided is decided by `mgota.core.offer`, what is verified by the session that reads flash;
- nothing of the device is touched before an image was found that it wants, and its server began to answer with it;
- an activation that was cut off before its reset is finished first: it would lock out every other update. An image that
  is selected and waits for the next start is installed, as often as it is asked for;
- what only flash can tell is decided at the seal: whose firmware was rolled back before, and which version is signed;
- an image is resumed after a restart only if something decides about it in the end: a digest or a key. If what was put
  together so does not pass, it is fetched once more from its first byte, and only then refused;
- the callback hears the seed's words: "Same version", "Pulling firmware", "OTA fail" and then why.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import anyio

from mgota.core.boot import refuse_update
from mgota.core.keys import PublicKey
from mgota.core.manifest import Manifest
from mgota.core.note import identity_of
from mgota.core.offer import NEWER, Decision, Policy, Reason, Standing, check_sealed, decide, is_offered
from mgota.core.polls import Refusals
from mgota.core.record import BootRecord, State
from mgota.core.signed_manifest import ManifestVerifier
from mgota.core.weburl import check_source, resolved
from mgota.device import Device
from mgota.errors import FailedBeforeError, OtaError, RejectedError, TooLargeError, VerifyError
from mgota.ports import Note
from mgota.resume import Marks, Resume
from mgota.session import OtaSession, check_size
from mgota.transports.pull.asking import Query, deadline_of, metadata, within
from mgota.transports.pull.client import Client, Web
from mgota.transports.pull.hooks import Gate, Hooks, OnStatus, Postpone, tell
from mgota.transports.pull.transfer import Transfer
from mgota.trial import finish_activation
from mgota.verified import VerifiedImage

log = logging.getLogger("mgota.pull")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """How a pull ended, if it did not fail.

    Args:
        decision: about what is offered.
        installed: the image is on trial from the next start on.
        staged: the image is verified and waits to be activated.
        postponed: where a hook put it off.
        after: seconds that the hook asked to wait.
    """

    decision: Decision
    installed: bool = False
    staged: bool = False
    postponed: Gate | None = None
    after: float | None = None


async def check(
    url: str,
    current_version: str | None = None,
    *,
    device: Device | None = None,
    keys: Sequence[PublicKey] | None = None,
    threshold: int = 1,
    allow_plain: bool = False,
    policy: Policy = NEWER,
    force: bool = False,
    floor: str | None = None,
    hardware: str | None = None,
    web: Web | None = None,
    mongoose_query: bool = False,
    device_id: str | None = None,
) -> Decision:
    """Ask what there is, and decide. Nothing is changed.

    Args:
        url: of the manifest.
        current_version: the version that runs; what the device has recorded if omitted.
        device: what would be updated, if there is one here: what it remembers counts, too.
        keys: who may sign manifests; those that the device trusts if omitted. Without any, none is verified.
        threshold: how many of them have to.
        allow_plain: take manifests that nobody signed, too.
        policy: which versions are wanted.
        force: take an image that was rolled back before, too.
        floor: of a device that is not here.
        hardware: the id of a device that is not here.
        web: how the server is reached.
        mongoose_query: tell the server what runs here, as Mongoose 7.22 does.
        device_id: the name in that query.

    Returns:
        Whether there is an update, and why. What only the image itself can tell is not known yet.

    Raises:
        TransferError: there is no answer.
        RejectedError: what came is no manifest, or nobody trusted signed it.
        ConfigError: the URL may not be asked.
    """
    web = web or Web()
    rules = ManifestVerifier(keys=_keys(device, keys), threshold=threshold, allow_plain=allow_plain)
    check_source(url, allow_http=web.allow_http or bool(rules.keys))
    standing = Standing(current=current_version, floor=floor, hardware=hardware)
    if device is not None:
        standing = await _standing(device, current_version)
    if mongoose_query:
        url = Query(device_id).on(url, standing.record or BootRecord(), standing.current)
    async with within(web, deadline_of(web)), Client(web, url) as client:
        found, _ = await metadata(client, url, web)
    manifest = rules.open(found, standing.record.chain if standing.record else None).manifest
    return decide(manifest, standing, policy, now=time.time(), force=force)


def _keys(device: Device | None, keys: Sequence[PublicKey] | None) -> Sequence[PublicKey]:
    """Who may sign manifests."""
    if keys is not None:
        return keys
    return device.verifier.keys if device and device.verifier else ()


async def _standing(device: Device, current: str | None) -> Standing:
    found, readable = await device.load()
    record = found or BootRecord()
    running = await device.flash.running_slot()
    if record.state is State.TESTING and record.trial is running:
        running = running.other  # selected, and not started yet: a boot makes it FAILED at once
    image = record.image(running)
    current = current or (image.version if image else None)
    parts = {"floor": device.floor, "hardware": device.hardware}
    return Standing(current=current, image=image, record=record, readable=readable, **parts)


async def pull(
    device: Device,
    url: str,
    *,
    current_version: str | None = None,
    keys: Sequence[PublicKey] | None = None,
    threshold: int = 1,
    allow_plain: bool = False,
    policy: Policy = NEWER,
    force: bool = False,
    hooks: Hooks | None = None,
    on_status: OnStatus | None = None,
    note: Note | None = None,
    web: Web | None = None,
    mongoose_query: bool = False,
    device_id: str | None = None,
    interval: float = 0.0,
    refusals: Refusals | None = None,
    on_decision: Callable[[Decision], None] | None = None,
) -> Pulled:
    """Ask what there is, and install it if it is wanted.

    Args:
        device: what is updated.
        url: of the manifest.
        current_version: the version that runs; what is recorded of the running image if omitted.
        keys: who may sign manifests; those that the device trusts for images if omitted.
        threshold: how many of them have to.
        allow_plain: take manifests that nobody signed, too; the image's signature is verified all the same.
        policy: which versions are wanted.
        force: install a firmware that was rolled back before, too.
        hooks: what the application is asked.
        on_status: told how it goes; cannot fail the update.
        note: where progress is marked, so that a download goes on after a restart.
        web: how servers are reached.
        mongoose_query: tell the server what runs here, as Mongoose 7.22 does.
        device_id: the name in that query.
        interval: seconds between polls, in that query.
        refusals: refused images of earlier pulls, which wait before they are fetched again.
        on_decision: told what was decided, before anything is done; once more, if the seal decides otherwise.

    Returns:
        What was decided, and whether the image was installed. On a device with a reset line it does not return then.

    Raises:
        TransferError: the manifest or the image could not be had.
        RejectedError: the manifest or the image is refused. BusyError: another update, or a trial.
        FlashError: the image could not be stored. ConfigError: a URL may not be asked.
    """
    web, refusals = web or Web(), refusals or Refusals()
    job = _Pull(
        device=device,
        url=url,
        web=web,
        rules=ManifestVerifier(keys=_keys(device, keys), threshold=threshold, allow_plain=allow_plain),
        hooks=hooks or Hooks(),
        on_status=on_status,
        note=note,
        until=deadline_of(web),
        refusals=refusals,
        on_decision=on_decision,
        query=Query(device_id, interval) if mongoose_query else None,
        policy=policy,
        force=force,
    )
    return await job.run(current_version)


@dataclass(frozen=True, kw_only=True)
class _Pull:
    """One pull, its options given."""

    device: Device
    url: str
    web: Web
    rules: ManifestVerifier
    hooks: Hooks
    on_status: OnStatus | None
    note: Note | None
    until: float | None
    refusals: Refusals
    on_decision: Callable[[Decision], None] | None
    query: Query | None
    policy: Policy
    force: bool

    @property
    def _allow_http(self) -> bool:
        return self.web.allow_http or bool(self.rules.keys)

    async def run(self, current: str | None) -> Pulled:
        """All of it, and its failure told."""
        try:
            return await self._run(current)
        except OtaError as exc:
            await tell(self.on_status, "OTA fail")
            await tell(self.on_status, str(exc) or type(exc).__name__)
            raise

    async def _run(self, current: str | None) -> Pulled:
        check_source(self.url, allow_http=self._allow_http)
        standing = await _standing(self.device, current)
        record = standing.record or BootRecord()
        async with Client(self.web, self.url) as client:
            manifest, base = await self._manifest(client, record, standing.current)
            decision = decide(manifest, standing, self.policy, now=time.time(), force=self.force)
            if self.on_decision:
                self.on_decision(decision)
            await finish_activation(self.device)
            decision.check()
            if not decision.update:
                await tell(self.on_status, "Same version" if decision.reason is Reason.SAME else decision.text)
                return Pulled(decision=decision)
            if record.state is State.TESTING:  # the image that is offered, or the decision were another one
                return Pulled(decision=decision, installed=True)
            try:
                return await self._staged(record, decision) or await self._install(client, base, decision, standing)
            except FailedBeforeError as exc:
                return await self._failed_before(decision, exc)

    async def _failed_before(self, decision: Decision, exc: FailedBeforeError) -> Pulled:
        """What only the seal could tell: in another image, this is the firmware that was rolled back."""
        decision = replace(decision, update=False, reason=Reason.FAILED_BEFORE, text=str(exc))
        if self.on_decision:
            self.on_decision(decision)
        await tell(self.on_status, decision.text)
        return Pulled(decision=decision)

    async def _manifest(self, client: Client, record: BootRecord, current: str | None) -> tuple[Manifest, str]:
        url = self.query.on(self.url, record, current) if self.query else self.url
        async with within(self.web, self.until):
            data, base = await metadata(client, url, self.web)
        opened = self.rules.open(data, record.chain)
        await self.device.remember(opened.chain)
        return opened.manifest, base

    async def _staged(self, record: BootRecord, decision: Decision) -> Pulled | None:
        """Activate the image that an earlier pull left staged, if it is this one."""
        image = record.image(record.staged) if record.staged else None
        if image is None or not is_offered(image, decision.manifest):
            return None
        if record.rolled_back(image.sha256) and not self.force:
            raise FailedBeforeError("already failed: the firmware that waits staged was rolled back")
        if answer := await self.hooks.ask(Gate.ACTIVATE, decision):  # before all of it is read
            return _put_off(decision, answer)
        try:
            verified = await self.device.staged()
        except OtaError as exc:
            log.warning("the staged image is worth nothing: %s", exc)
            return None
        if verified is None or not is_offered(verified.image, decision.manifest):
            return None  # while the hook was asked, somebody staged another one: it is not what the answer was about
        await self.device.activate(verified)
        return Pulled(decision=decision, installed=True)

    async def _install(self, client: Client, base: str, decision: Decision, standing: Standing) -> Pulled:
        manifest = decision.manifest
        url = resolved(base, manifest.url)
        check_source(url, allow_http=self._allow_http)
        name = identity_of(url, manifest.size, manifest.sha256)
        if self.refusals.holds(name, anyio.current_time()):
            await tell(self.on_status, f"version {manifest.version} was refused, and is tried again later")
            return Pulled(decision=decision)
        for gate in (Gate.DOWNLOAD, Gate.INSTALL):
            if answer := await self.hooks.ask(gate, decision):
                return Pulled(decision=decision, postponed=gate, after=answer.seconds)
        try:
            return await self._fetch(client, url, decision, standing)
        except (TooLargeError, FailedBeforeError):
            raise  # room may come; and what failed is remembered in the record
        except RejectedError:
            self.refusals.note(name, anyio.current_time())
            raise

    async def _fetch(self, client: Client, url: str, decision: Decision, standing: Standing) -> Pulled:
        manifest = decision.manifest
        await tell(self.on_status, "Pulling firmware")
        resume = self._resume(manifest, url)
        async with Transfer(client, url, manifest.size, self.web) as transfer:
            await self._look(transfer, manifest, resume)
            session = OtaSession(
                self.device, size=manifest.size, manifest=manifest, resume=resume, refuse_failed=not self.force
            )
            return await self._stored(transfer, session, decision, standing)

    async def _look(self, transfer: Transfer, manifest: Manifest, resume: Resume | None) -> None:
        """See that the image is there, before room is made for it; what broke off has its room already."""
        await check_size(self.device, manifest.size)
        record, readable = await self.device.load()
        refuse_update(record, readable=readable)
        staging = (await self.device.flash.running_slot()).other
        if record and resume and await Marks(resume, manifest.size).promise(record, staging):
            return
        async with within(self.web, self.until):
            await transfer.look()

    async def _stored(self, transfer: Transfer, session: OtaSession, decision: Decision, standing: Standing) -> Pulled:
        async with session:
            sealed = await self._sealed(transfer, session)
            if self.device.verifier:
                check_sealed(decision.manifest, sealed.image, standing, self.policy)
            if self.hooks.may_activate is None:
                await session.activate(sealed)
                return Pulled(decision=decision, installed=True)
            await session.activate(sealed, reset=False)
        if answer := await self.hooks.ask(Gate.ACTIVATE, decision):
            return _put_off(decision, answer)
        await self.device.activate(sealed)
        return Pulled(decision=decision, installed=True)

    def _resume(self, manifest: Manifest, url: str) -> Resume | None:
        if self.note is None or (manifest.sha256 is None and self.device.verifier is None):
            return None
        return Resume(note=self.note, identity=identity_of(url, manifest.size, manifest.sha256))

    async def _sealed(self, transfer: Transfer, session: OtaSession) -> VerifiedImage:
        while True:
            async with within(self.web, self.until):
                await transfer.into(session)
            try:
                return await session.seal()
            except FailedBeforeError:
                raise
            except (RejectedError, VerifyError) as exc:
                if not session.resumed:
                    raise
                log.warning("what was put together from two lives does not pass, all of it is fetched anew: %s", exc)
                await session.restart()


def _put_off(decision: Decision, answer: Postpone) -> Pulled:
    return Pulled(decision=decision, staged=True, postponed=Gate.ACTIVATE, after=answer.seconds)
