"""The files of one virtual chip: which of them belong together, and what a file that is missing means.

    FILE                 the raw array            FILE.part            target, part and a random id
    STATE                the boot record          STATE.part           the same
    STATE.journal        of a swap, where the gateway keeps it

| FILE | STATE | then |
|---|---|---|
| missing | missing | a new chip: what lies beside them is of one that is gone, and is forgotten |
| missing | there | refused: what the record speaks of is gone |
| there | missing | a chip at its first start; refused if FILE has had another record, or a swap of it was cut off |
| there | there | the same chip as before; refused if the two ids differ |

Rules:
- files are looked at and made under a lock: of two processes that begin one chip, one does;
- a refusal says what to remove if it is wrong, and removes nothing itself.
"""

import secrets
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mgota.errors import ConfigError, StateError, UpdateRunningError
from mgota.flash.files import DurableFile, FileLock, replace_file, sync_directory

PART = "part"
JOURNAL = "journal"
POWER = "power"
LOCK = "lock"

LIMIT = 200
"""Bytes of the longest FILE.part or journal that is read."""


def beside(path: Path, ending: str) -> Path:
    """The file that lies beside another one, as PATH.ending."""
    return path.with_name(f"{path.name}.{ending}")


class ChipFiles:
    """The files of one chip.

    Args:
        part: target and part.
        flash: the raw array, by its real name.
        state: the boot record, by its real name.
    """

    def __init__(self, part: str, flash: Path, state: Path) -> None:
        self.part = part
        self.flash = flash
        self.state = state
        self.journal = beside(state, JOURNAL)

    @contextmanager
    def copied(self) -> Generator["ChipFiles"]:
        """Copies of the files, to be looked at as a chip, whoever runs it. Nothing beside the originals is made.

        Raises:
            ConfigError: they are not those of one such chip, or cannot be copied.
        """
        # `serve` copies nothing, and does without the compressors that these two bring.
        from shutil import copyfile  # noqa: PLC0415
        from tempfile import TemporaryDirectory  # noqa: PLC0415

        with TemporaryDirectory(prefix="mgota-") as directory:
            copy = ChipFiles(self.part, Path(directory, "flash"), Path(directory, "state"))
            try:
                if self.flash.exists() or self.state.exists():  # else there is nothing to refuse, and nothing to copy
                    self._check()
                for mine, its, endings in (
                    (self.flash, copy.flash, ("opt", PART)),
                    (self.state, copy.state, (JOURNAL, PART)),
                ):
                    for path, to in ((mine, its), *((beside(mine, end), beside(its, end)) for end in endings)):
                        if path.exists():
                            copyfile(path, to)
            except OSError as exc:
                raise ConfigError(
                    f"the files of the chip {self.flash} cannot be read: {str(exc.strerror).lower()}"
                ) from exc
            yield copy

    @property
    def power(self) -> tuple[FileLock, ...]:
        """Held by the one process that is this chip: on the array itself, whatever names it has, and for the record."""
        return FileLock(self.flash), FileLock(beside(self.state, POWER))

    @contextmanager
    def claimed(self) -> Generator[None]:
        """Look at the files, let the block make what is missing, and say whose they are.

        Raises:
            ConfigError: they are not those of one such chip.
            UpdateRunningError: another process is this chip.
        """
        try:
            with ExitStack() as held:
                locks = [beside(self.flash, LOCK), *([self.flash] if self.flash.exists() else [])]
                for path in locks:
                    _enter(held, path)
                owner = self._check()
                yield
                if owner is None:
                    self._own()
        except OSError as exc:
            raise ConfigError(
                f"the files of the chip {self.flash} cannot be used: {str(exc.strerror).lower()}"
            ) from exc

    def _check(self) -> str | None:
        """Whether these can be the files of one chip; what both are owned by, or None if that is to be said yet."""
        if not self.flash.exists():
            if self.state.exists():
                raise ConfigError(
                    f"{self.state} is the boot record of a chip, and its flash memory {self.flash} is missing"
                )
            self._forget()
            return None
        mine, its = self._owner(self.flash), self._owner(self.state)
        if mine and not mine.startswith(f"{self.part} "):
            found = mine.rpartition(" ")[0]
            raise ConfigError(
                f"{self.flash} is the flash memory of {found}, not of {self.part}; if that is wrong, remove "
                f"{beside(self.flash, PART)} and {beside(self.state, PART)}"
            )
        if mine != its:
            raise ConfigError(
                f"{self.flash} and {self.state} are of two different chips; to begin anew with this flash memory, "
                f"remove {beside(self.flash, PART)} and take a boot record that does not exist yet"
            )
        if not self.state.exists() and self._is_swapping():
            raise ConfigError(
                f"a swap of this chip was cut off, as {self.journal} says, and its boot record {self.state} is gone: "
                "nobody knows what lies in its flash memory. If that is another one now, remove the journal"
            )
        return mine

    def _owner(self, path: Path) -> str | None:
        found = DurableFile(beside(path, PART), LIMIT).load()
        if found is None:
            return None
        text = found.decode("ascii", "replace").strip()
        if len(found) > LIMIT or not text.isprintable() or text.count(" ") != 2:
            raise ConfigError(f"{beside(path, PART)} is damaged: if {path} is known to be of {self.part}, remove it")
        return text

    def _is_swapping(self) -> bool:
        from mgota.core.recordlog import Kind, decode_entry  # noqa: PLC0415  `serve --slots` stays small without
        from mgota.core.swap import Phase, SwapState  # noqa: PLC0415

        found = DurableFile(self.journal, LIMIT).load()
        if found is None:
            return False
        entry = decode_entry(found, Kind.SWAP)
        try:
            return SwapState.decode(entry[1] if entry else b"").phase is not Phase.IDLE
        except StateError:
            return True

    def _own(self) -> None:
        owner = f"{self.part} {secrets.token_hex(8)}\n".encode()
        replace_file(beside(self.state, PART), owner)
        replace_file(beside(self.flash, PART), owner)

    def _forget(self) -> None:
        for path in (beside(self.flash, PART), beside(self.state, PART), self.journal):
            if path.exists():
                path.unlink()
                sync_directory(path.parent)


def _enter(held: ExitStack, path: Path) -> None:
    try:
        held.enter_context(FileLock(path).hold())
    except UpdateRunningError as exc:
        raise UpdateRunningError(f"another process runs this device: {path} is locked") from exc
