"""Firmware updates that never brick: streamed to flash, verified from flash, tried, committed or rolled back.

    async with OtaSession(device, size=n) as ota:
        async for chunk in body:
            await ota.write(chunk)
        await ota.activate(await ota.seal())

The names below are the whole door; errors are in `mgota.errors`, Protocols for backends of your own in `mgota.ports`.
"""

from mgota.core.geometry import Geometry, Region, Slot
from mgota.core.image import Trailer, Verifier
from mgota.core.keys import PrivateKey, PublicKey, load_private_key, load_public_key
from mgota.core.record import BootRecord, Outcome, State
from mgota.device import Device
from mgota.errors import BusyError, ConfigError, FlashError, OtaError, RejectedError, TransferError
from mgota.session import OtaSession
from mgota.trial import boot_check, commit, rollback, run_trial
from mgota.verified import VerifiedImage

__all__ = [
    "BootRecord",
    "BusyError",
    "ConfigError",
    "Device",
    "FlashError",
    "Geometry",
    "OtaError",
    "OtaSession",
    "Outcome",
    "PrivateKey",
    "PublicKey",
    "Region",
    "RejectedError",
    "Slot",
    "State",
    "Trailer",
    "TransferError",
    "VerifiedImage",
    "Verifier",
    "boot_check",
    "commit",
    "load_private_key",
    "load_public_key",
    "rollback",
    "run_trial",
]
