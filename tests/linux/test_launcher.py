"""The launcher with real programs: trials that end well and badly, restarts, kills, systemd."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import pytest
from launcher_bench import COMMITS, CRASHES, EXITS, HEAD, RUNS, Bench, is_alive, stop, until

from mgota import trial as trial_module
from mgota.core.boot import OPERATOR, Verdict, commit_steps
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, Outcome, State
from mgota.errors import ConfigError, OtaError, RollbackRefusedError, SelectError, UpdateRunningError
from mgota.linux import launcher as launcher_module
from mgota.linux.child import Child, describe
from mgota.linux.environment import LauncherInfo, device_at, launcher_info
from mgota.linux.launcher import launch
from mgota.linux.listener import listen
from mgota.linux.notify import RESET, Notifier
from mgota.linux.supervise import COURSES, Event, Pulse, next_pause, on_trial, pause_after
from mgota.linux.watching import first
from mgota.trial import commit, rollback

HANGS = HEAD + 'send("WATCHDOG=1")\ntime.sleep(1000)\n'
ASKS_ONCE = HEAD + 'if not os.path.exists(directory + "/asked"):\n    open(directory + "/asked", "w").close()\n'
ASKS = ASKS_ONCE + '    send("X_MGOTA=RESET")\ntime.sleep(1000)\n'
ASKS_AND_EXITS = ASKS_ONCE + '    send("X_MGOTA=RESET")\n    sys.exit(0)\ntime.sleep(1000)\n'
SLEEPER = "import sys, time\nprint('up', flush=True)\ntime.sleep(1000)\n"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for name in list(os.environ):
        # Nor may the programs be measured: those that are killed leave half a file of measurements.
        if name.startswith(("NOTIFY_", "WATCHDOG_", "MGOTA_D", "MGOTA_S", "COVERAGE_")):
            monkeypatch.delenv(name)
    made = Bench(tmp_path / "device")
    yield made
    made.close()


async def rolled_back(bench: Bench) -> BootRecord:
    await until(lambda: bench.said()[-1:] == ["a started"])
    record = await bench.record()
    assert record.state is State.CONFIRMED
    assert record.outcome is Outcome.ROLLED_BACK
    assert (bench.directory / "current").readlink() == Path("a")
    return record


# trials


@pytest.mark.asyncio
async def test_a_good_trial_commits_itself_and_lives_on_behind_its_window(bench: Bench) -> None:
    bench.install(RUNS)
    await bench.update(COMMITS)
    async with bench.launched(window=2.5):
        await until(lambda: "b committed True" in bench.said())
        info = launcher_info(bench.directory)
        assert info is not None
        assert info.slot is Slot.B
        assert info.trial_until is not None
        await until(lambda: (now := launcher_info(bench.directory)) and now.trial_until is None)
        assert bench.said() == ["b started", "b committed True"]
        assert is_alive(bench.pids()[0])
    record = await bench.record()
    assert (record.state, record.outcome) == (State.CONFIRMED, Outcome.COMMITTED)
    assert launcher_info(bench.directory) is None


@pytest.mark.parametrize(
    ("program", "why"),
    [(CRASHES, "it exited with 1"), (EXITS, "it exited with 3"), (HEAD + "os.abort()\n", "it was ended by SIGABRT")],
    ids=["crashes at import", "exits", "aborts"],
)
@pytest.mark.asyncio
async def test_a_program_on_trial_that_ends_is_rolled_back(bench: Bench, program: str, why: str) -> None:
    bench.install(RUNS)
    await bench.update(program)
    async with bench.launched():
        await until(lambda: bench.said() == ["b started", "a started"])
        assert (await rolled_back(bench)).reason == why


@pytest.mark.asyncio
async def test_a_program_on_trial_that_hangs_is_rolled_back_by_its_watchdog(bench: Bench) -> None:
    bench.install(RUNS)
    await bench.update(HANGS)
    async with bench.launched(watchdog=0.5):
        record = await rolled_back(bench)
        assert record.reason == "it hung: no sign of life for 0.5 s"
        assert not is_alive(bench.pids()[0])


@pytest.mark.asyncio
async def test_a_program_on_trial_that_is_not_committed_in_its_window_is_rolled_back(bench: Bench) -> None:
    bench.install(RUNS)
    await bench.update(RUNS)
    async with bench.launched(window=2.0):
        record = await rolled_back(bench)
        assert record.reason == "it was not committed within 2 s"
        assert not is_alive(bench.pids()[0])


@pytest.mark.asyncio
async def test_a_program_that_watches_its_own_window_is_rolled_back_for_the_same_reason(bench: Bench) -> None:
    bench.install(RUNS)
    main = "import anyio\nfrom mgota import Device, run_trial\nanyio.run(run_trial, Device.from_environment())\n"
    await bench.update(HEAD + main)
    async with bench.launched(window=2.0):
        assert (await rolled_back(bench)).reason == "it was not committed within 2 s"


@pytest.mark.asyncio
async def test_an_image_that_is_no_program_is_rolled_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.install(f"#!{sys.executable} -I\n" + RUNS)
    (bench.directory / "a").chmod(0o755)
    await bench.update("#!/no/such/interpreter\n")
    async with anyio.create_task_group() as tg:
        tg.start_soon(launch, bench.directory, ["{slot}"])
        assert "cannot be started" in str((await rolled_back(bench)).reason)
        tg.cancel_scope.cancel()


@pytest.mark.asyncio
async def test_tries_are_counted(bench: Bench) -> None:
    bench.install(RUNS)
    await bench.update(EXITS)
    await bench.device().state.store((await bench.record()).next(tries=2))
    async with bench.launched():
        await rolled_back(bench)
    assert bench.said() == ["b started", "b started", "a started"]


@pytest.mark.asyncio
async def test_at_the_windows_end_the_record_is_read_again_under_the_lock(bench: Bench) -> None:
    """Somebody holds the lock over the window's end and commits: the program was killed, and is started again."""
    bench.install(RUNS)
    await bench.update(RUNS)
    async with bench.launched(window=2.0):
        await until(bench.pids)
        device = bench.device()
        async with device.exclusive(wait=1.0):
            await until(lambda: not is_alive(bench.pids()[0]))
            record, _ = await device.load()
            assert record
            assert on_trial(record, Slot.B)
            await device.perform(*commit_steps(record, Slot.B))
        await until(lambda: len(bench.pids()) == 2)
        assert bench.said() == ["b started", "b started"]
    assert (await bench.record()).outcome is Outcome.COMMITTED


@pytest.mark.asyncio
async def test_another_process_commits_the_trial_and_sees_its_time(bench: Bench) -> None:
    bench.install(RUNS)
    await bench.update(RUNS)
    async with bench.launched(window=30):
        await until(bench.pids)
        device = device_at(bench.directory)
        left = (await device.status()).seconds_left
        assert left is not None
        assert 0 < left <= 30
        assert await commit(device)
        assert (await device.status()).seconds_left is None
    assert (await bench.record()).outcome is Outcome.COMMITTED
    assert bench.said() == ["b started"]


@pytest.mark.asyncio
async def test_another_process_rolls_back_and_the_launcher_starts_the_other_program(bench: Bench) -> None:
    bench.install(RUNS)
    async with bench.launched():
        await until(bench.pids)
        with pytest.raises(RollbackRefusedError):
            await rollback(device_at(bench.directory))
    await bench.update(RUNS)
    async with bench.launched():
        await until(lambda: "b started" in bench.said())
        assert await commit(device_at(bench.directory))
        await rollback(device_at(bench.directory))
        record = await rolled_back(bench)
        assert record.reason == OPERATOR


@pytest.mark.asyncio
async def test_a_device_whose_only_image_is_bad_stays_with_it_and_does_not_spin(bench: Bench) -> None:
    """There is nothing whole to go back to: the alarm is raised, and the program is started with pauses."""
    bench.install(RUNS)
    async with bench.launched():
        await until(bench.pids)
    await bench.update(EXITS)
    bench.install("not the proven program any more")
    async with bench.launched():
        await until(lambda: len(bench.pids()) == 3)
        assert (await bench.record()).outcome is Outcome.STUCK
    assert bench.said() == ["a started", "b started", "b started"]


# a CONFIRMED program


@pytest.mark.asyncio
async def test_a_confirmed_program_that_exits_is_restarted_with_pauses_and_never_rolled_back(bench: Bench) -> None:
    bench.install(EXITS)
    began = time.monotonic()
    async with bench.launched():
        await until(lambda: len(bench.pids()) >= 3)
        assert time.monotonic() - began >= 1.5, "0.5 s, then 1 s"
    assert set(bench.said()) == {"a started"}
    record = await bench.record()
    assert (record.state, record.outcome) == (State.CONFIRMED, None)


@pytest.mark.asyncio
async def test_a_confirmed_program_that_stops_feeding_is_restarted(bench: Bench) -> None:
    bench.install(HANGS)
    async with bench.launched(watchdog=0.5):
        await until(lambda: len(bench.pids()) == 2)
        assert not is_alive(bench.pids()[0])
    assert set(bench.said()) == {"a started"}


@pytest.mark.asyncio
async def test_a_program_that_feeds_lives_and_one_that_never_feeds_is_not_watched(bench: Bench) -> None:
    bench.install(HEAD + 'for _ in range(15):\n    send("WATCHDOG=1")\n    time.sleep(0.1)\nsay("fed")\nsys.exit()\n')
    async with bench.launched(watchdog=1.0):
        await until(lambda: "a fed" in bench.said())
        assert len(bench.pids()) == 1
    (bench.directory / "log").unlink()
    bench.install(HEAD + 'time.sleep(1.5)\nsay("still here")\ntime.sleep(1000)\n')
    async with bench.launched(watchdog=0.5):
        await until(lambda: "a still here" in bench.said())
        assert len(bench.pids()) == 1


@pytest.mark.parametrize("program", [ASKS, ASKS_AND_EXITS], ids=["waits", "exits"])
@pytest.mark.asyncio
async def test_a_reset_starts_the_program_again_at_once(
    bench: Bench, program: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.install(program)
    caplog.set_level("INFO", "mgota.launcher")
    async with bench.launched():
        await until(lambda: len(bench.pids()) == 2)
    assert "asked for a reset" in caplog.text
    assert "again in" not in caplog.text, "no pause"


@pytest.mark.asyncio
async def test_a_reset_ends_a_pause(bench: Bench) -> None:
    bench.install(EXITS)
    async with bench.launched():
        await until(lambda: len(bench.pids()) == 3)
        await until(lambda: (info := launcher_info(bench.directory)) and info.slot is None)
        reset = device_at(bench.directory).reset
        assert reset
        began = time.monotonic()
        await reset.reset()
        await until(lambda: len(bench.pids()) == 4)
        assert time.monotonic() - began < 2, "the third pause is 2 s"


@pytest.mark.asyncio
async def test_noise_on_the_socket_disturbs_nothing(bench: Bench) -> None:
    bench.install(RUNS)
    async with bench.launched():
        await until(bench.pids)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for noise in (b"", b"\xff\0=", b"X_MGOTA=reset", b"=" * 4096, b"A" * 9000, b"\n\n"):
                sender.sendto(noise, str(bench.directory / "notify"))
                await anyio.sleep(0.02)
        assert is_alive(bench.pids()[0])
        assert len(bench.pids()) == 1


# what a program finds


@pytest.mark.asyncio
async def test_the_program_finds_its_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = 'say(repr({k: os.environ.get(k) for k in sys.argv[2].split(",")}))\nsay(sys.argv[1:2])\ntime.sleep(1000)\n'
    bench.install(HEAD + tell)
    environ = {**os.environ, "WATCHDOG_PID": "1", "WATCHDOG_USEC": "5", "MGOTA_TRIAL_UNTIL": "7"}
    keys = (
        "MGOTA_DIR,MGOTA_SLOT,MGOTA_WINDOW,MGOTA_TRIAL_UNTIL,WATCHDOG_PID,WATCHDOG_USEC,NOTIFY_SOCKET,"
        "MGOTA_FLOOR,MGOTA_HARDWARE"
    )
    command = [sys.executable, "-I", "{slot}", "--image={slot}", keys]
    async with anyio.create_task_group() as tg:
        asked = partial(launch, window=7.5, watchdog=3, environ=environ, floor="1.2", hardware="rev-b")
        tg.start_soon(asked, bench.directory, command)
        await until(lambda: len(bench.said()) == 3)
        tg.cancel_scope.cancel()
    assert bench.said()[1] == "a " + repr(
        {
            "MGOTA_DIR": str(bench.directory),
            "MGOTA_SLOT": "a",
            "MGOTA_WINDOW": "7.5",
            "MGOTA_TRIAL_UNTIL": None,
            "WATCHDOG_PID": None,
            "WATCHDOG_USEC": "3000000",
            "NOTIFY_SOCKET": str(bench.directory / "notify"),
            "MGOTA_FLOOR": "1.2",
            "MGOTA_HARDWARE": "rev-b",
        }
    )
    assert bench.said()[2] == f"a ['--image={bench.directory}/a']"


@pytest.mark.asyncio
async def test_the_socket_is_private_and_a_long_path_does_no_harm(tmp_path: Path) -> None:
    bench = Bench(tmp_path / ("long" * 40))
    bench.install(ASKS)
    async with bench.launched():
        await until(lambda: len(bench.pids()) == 2)
        assert (bench.directory / "notify").stat().st_mode & 0o777 == 0o600
        assert device_at(bench.directory).reset
    assert not (bench.directory / "notify").exists()


@pytest.mark.asyncio
async def test_what_a_program_started_ends_with_it(bench: Bench) -> None:
    bench.install(
        HEAD
        + "import subprocess\n"
        + f"other = subprocess.Popen([sys.executable, '-I', '-c', {SLEEPER!r}], stdout=subprocess.PIPE)\n"
        + "other.stdout.readline()\nsay(f'other {other.pid}')\nsys.exit(0)\n"
    )
    async with bench.launched():
        await until(lambda: len(bench.pids()) == 2)
        other = int(next(line for line in bench.said() if "other" in line).split()[-1])
        await until(lambda: not is_alive(other))


@pytest.mark.asyncio
async def test_what_left_its_group_ends_with_it_too(bench: Bench) -> None:
    bench.install(
        HEAD
        + "import subprocess\n"
        + f"command = [sys.executable, '-I', '-c', {SLEEPER!r}]\n"
        + "other = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)\n"
        + "other.stdout.readline()\nsay(f'other {other.pid}')\nsys.exit(0)\n"
    )
    async with bench.launched():
        await until(lambda: len(bench.pids()) == 2)
        other = int(next(line for line in bench.said() if "other" in line).split()[-1])
        await until(lambda: not is_alive(other))
        assert not is_alive(other)


# who may launch, and what


@pytest.mark.asyncio
async def test_what_the_record_does_not_know_is_not_run(bench: Bench) -> None:
    """Half of a first image, for one: its `provision` was cut off."""
    bench.install(RUNS)
    await bench.device().state.store(BootRecord())
    with pytest.raises(ConfigError, match="is no image"):
        await launch(bench.directory, ["true"])
    assert not bench.said()


@pytest.mark.asyncio
async def test_the_next_update_ends_the_window_of_the_last(bench: Bench) -> None:
    """Committed, and TESTING speaks of the other slot already: the program replies yet, and is not killed for it."""
    commits_and_updates = COMMITS.replace(
        "    await anyio.sleep_forever()",
        """    from mgota import OtaSession
    async def reply():
        await anyio.sleep(3)
        say("replied")
    async with OtaSession(Device.from_environment(), size=1) as ota:
        await ota.write(b"#")
        await ota.activate(await ota.seal(), announce=reply)""",
    )
    bench.install(RUNS)
    async with bench.launched(window=2.5):
        await until(bench.pids)
        await bench.update(commits_and_updates)
        os.kill(bench.pids()[0], signal.SIGKILL)
        await until(lambda: "b replied" in bench.said())
        assert "b committed True" in bench.said()


@pytest.mark.asyncio
async def test_a_second_launcher_is_refused(bench: Bench) -> None:
    bench.install(RUNS)
    async with bench.launched():
        await until(bench.pids)
        with pytest.raises(UpdateRunningError, match="another launcher runs"):
            await launch(bench.directory, ["true"])
        assert is_alive(bench.pids()[0])


@pytest.mark.asyncio
async def test_a_look_from_outside_does_not_keep_a_launcher_from_starting(bench: Bench) -> None:
    bench.install(RUNS)
    (bench.directory / "launcher").touch()

    def look(ended: list[bool]) -> None:
        while not ended:
            launcher_info(bench.directory)

    ended: list[bool] = []
    async with anyio.create_task_group() as tg:
        tg.start_soon(anyio.to_thread.run_sync, look, ended)
        async with bench.launched():
            await until(bench.pids)
            ended.append(True)


@pytest.mark.asyncio
async def test_an_empty_slot_is_a_clear_error(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="slot a is empty: write the first image with `mgota provision`"):
        await launch(bench.directory, ["{slot}"])
    assert not (bench.directory / "state").exists(), "nothing was taken for a first start"


@pytest.mark.asyncio
async def test_no_command_and_wrong_options_are_clear_errors(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="what is there to run"):
        await launch(bench.directory, [])
    with pytest.raises(ConfigError, match="window"):
        await launch(bench.directory, ["true"], window=0)
    (bench.directory / "notify").mkdir()
    with pytest.raises(ConfigError, match="cannot listen"):
        await launch(bench.directory, ["true"])


@pytest.mark.asyncio
async def test_a_later_boot_decision_that_fails_is_tried_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.install(RUNS)
    async with bench.launched():
        await until(bench.pids)
        reset = device_at(bench.directory).reset
        assert reset
        (bench.directory / "current").unlink()
        (bench.directory / "current").symlink_to("c")
        await reset.reset()
        await until(lambda: "has to be a link to a or b" in caplog.text)
        assert not is_alive(bench.pids()[0])
        (bench.directory / "current").unlink()
        (bench.directory / "current").symlink_to("a")
        await until(lambda: len(bench.pids()) == 2)


@pytest.mark.asyncio
async def test_a_selection_that_never_settles_ends_the_launcher(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def reset(*_: object, **__: object) -> Verdict:
        return Verdict.RESET

    monkeypatch.setattr(launcher_module, "boot_check", reset)
    bench.install(RUNS)
    with pytest.raises(SelectError, match="for good"):
        await launch(bench.directory, ["true"])


@pytest.mark.asyncio
async def test_a_boot_decision_waits_for_who_holds_the_device(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial_module, "LOCK_WAIT", 0.1)
    bench.install(RUNS)
    async with bench.device().exclusive(), anyio.create_task_group() as tg:
        tg.start_soon(launch, bench.directory, [sys.executable, "-I", "{slot}"])
        await until(lambda: "waiting: another update or boot decision is under way" in caplog.text)
        await anyio.sleep(0.5)
        assert caplog.text.count("waiting:") == 1
        assert bench.pids() == []
        tg.cancel_scope.cancel()
    async with bench.launched():
        await until(bench.pids)


@pytest.mark.asyncio
async def test_a_program_runs_even_if_nobody_can_be_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: LauncherInfo) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LauncherInfo, "encode", full)
    bench.install(RUNS)
    async with bench.launched():
        await until(bench.pids)
        assert launcher_info(bench.directory) is None


@pytest.mark.asyncio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_launcher_with_0(bench: Bench, number: signal.Signals) -> None:
    bench.install(RUNS)
    async with anyio.create_task_group() as tg:
        statuses: list[int] = []

        async def run() -> None:
            statuses.append(await launch(bench.directory, [sys.executable, "-I", "{slot}"]))

        tg.start_soon(run)
        await until(bench.pids)
        os.kill(os.getpid(), number)
    assert statuses == [0]
    assert not is_alive(bench.pids()[0])


@pytest.mark.asyncio
async def test_a_wish_comes_before_the_end_that_it_explains() -> None:
    async def end() -> Event:
        return Event.EXITED

    async def wish() -> Event:
        return Event.RESET

    async def never() -> Event:
        await anyio.sleep_forever()
        raise AssertionError

    assert await first(end, wish) is Event.RESET
    assert await first(end, never) is Event.EXITED


@pytest.mark.asyncio
async def test_the_first_boot_decision_that_fails_ends_the_launcher(bench: Bench) -> None:
    bench.install(RUNS)
    (bench.directory / "current").symlink_to("c")
    with pytest.raises(OtaError, match="has to be a link to a or b"):
        await launch(bench.directory, ["true"])


@pytest.mark.asyncio
async def test_an_unreadable_record_runs_what_is_selected_and_selects_nothing(bench: Bench) -> None:
    bench.install(RUNS)
    (bench.directory / "state").write_bytes(b"rubbish")
    async with bench.launched():
        await until(bench.pids)
        assert (await device_at(bench.directory).status()).state is State.UNKNOWN
    assert (bench.directory / "state").read_bytes() == b"rubbish"


@pytest.mark.asyncio
async def test_without_pidfd_the_end_of_a_program_is_seen_as_well(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    bench.install(RUNS)
    await bench.update(EXITS)
    async with bench.launched():
        await rolled_back(bench)


# signals


@pytest.mark.asyncio
async def test_sigterm_ends_the_program_gently_and_the_launcher_with_0(bench: Bench) -> None:
    bench.install(
        HEAD + 'signal.signal(signal.SIGTERM, lambda *_: (say("bye"), sys.exit(0)))\nsay("up")\nsignal.pause()\n'
    )
    process = bench.start()
    await until(lambda: "a up" in bench.said())
    assert await anyio.to_thread.run_sync(stop, process) == 0
    assert bench.said() == ["a started", "a up", "a bye"]
    assert not is_alive(bench.pids()[0])


@pytest.mark.asyncio
async def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(bench: Bench) -> None:
    bench.install(HEAD + 'signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay("up")\nwhile True: time.sleep(1)\n')
    process = bench.start(grace=0.3)
    await until(lambda: "a up" in bench.said())
    assert await anyio.to_thread.run_sync(stop, process) == 0
    assert not is_alive(bench.pids()[0])


@pytest.mark.asyncio
async def test_sigterm_during_a_trial_warns_and_the_next_start_rolls_back(bench: Bench) -> None:
    bench.install(RUNS)
    await bench.update(RUNS)
    process = bench.start()
    await until(bench.pids)
    assert await anyio.to_thread.run_sync(stop, process) == 0
    assert "the next start rolls it back" in bench.errors()
    async with bench.launched():
        await rolled_back(bench)


@pytest.mark.asyncio
async def test_a_killed_launcher_takes_its_program_along_and_the_next_decides_right(bench: Bench) -> None:
    """SIGKILL while CONFIRMED, and while on trial: nothing is lost, nothing is left."""
    bench.install(RUNS)
    process = bench.start()
    await until(lambda: len(bench.pids()) == 1)
    process.kill()
    await until(lambda: not is_alive(bench.pids()[0]))
    process.wait()
    assert launcher_info(bench.directory) is None
    await bench.update(RUNS)
    process = bench.start()
    await until(lambda: len(bench.pids()) == 2)
    process.kill()
    await until(lambda: not is_alive(bench.pids()[1]))
    async with bench.launched():
        await rolled_back(bench)
    assert bench.said() == ["a started", "b started", "a started"]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.12, 0.2, 0.24, 0.28, 0.32, 0.4])
@pytest.mark.asyncio
async def test_a_launcher_killed_at_any_moment_of_a_trial_loses_nothing(bench: Bench, delay: float) -> None:
    bench.install(RUNS)
    await bench.update(CRASHES)
    process = bench.start()
    await anyio.sleep(delay)
    process.kill()
    process.wait()
    async with bench.launched():
        await rolled_back(bench)
    assert bench.said().count("b started") <= 1
    await until(lambda: not any(map(is_alive, bench.pids())))


@pytest.mark.asyncio
async def test_a_stopped_launcher_does_not_take_silence_for_a_hang(bench: Bench) -> None:
    bench.install(HEAD + 'while True:\n    send("WATCHDOG=1")\n    time.sleep(0.1)\n    say("fed")\n')
    process = bench.start(watchdog=1.0)
    await until(lambda: "a fed" in bench.said())
    process.send_signal(signal.SIGSTOP)
    await anyio.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    await anyio.sleep(0.5)
    assert len(bench.pids()) == 1
    await anyio.to_thread.run_sync(stop, process)


# systemd


class FakeSystemd:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.heard: list[str] = []

    def hear(self) -> list[str]:
        with suppress(BlockingIOError):
            while True:
                self.heard.append(self.socket.recv(4096).decode())
        return self.heard


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[FakeSystemd]:
    made = FakeSystemd(tmp_path / "s")
    yield made
    made.socket.close()


@pytest.mark.asyncio
async def test_under_systemd_ready_and_watchdog_are_forwarded(
    bench: Bench, systemd: FakeSystemd, tmp_path: Path
) -> None:
    bench.install(
        HEAD + 'send("READY=1\\nSTATUS=mine")\nsend("READY=1")\nsay("up")\nsend("WATCHDOG=1")\ntime.sleep(1000)\n'
    )
    environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "s")}
    async with bench.launched(environ=environ):
        await until(lambda: "WATCHDOG=1" in systemd.hear())
    heard = systemd.hear()
    assert heard.count("READY=1") == 1
    assert heard.count("WATCHDOG=1") == 1, "it waits for none, and none is made up"
    assert "STATUS=running slot a (CONFIRMED)" in heard
    assert heard[-1] == "STOPPING=1"


@pytest.mark.asyncio
async def test_under_systemd_the_launcher_feeds_while_no_program_does(
    bench: Bench, systemd: FakeSystemd, tmp_path: Path
) -> None:
    bench.install(HEAD + 'send("WATCHDOG=1")\nsay("up")\ntime.sleep(1000)\n')
    environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "s"), "WATCHDOG_USEC": "300000"}
    environ["WATCHDOG_PID"] = str(os.getpid())
    async with bench.launched(environ=environ, watchdog=10.0):
        # The program may take no longer than systemd waits: it is killed after 0.3 s, and fed for in the pauses.
        await until(lambda: len(bench.pids()) == 2)
        await until(lambda: any("starting again" in line for line in systemd.hear()))
        count = systemd.hear().count("WATCHDOG=1")
        assert count > len(bench.pids())


@pytest.mark.asyncio
async def test_a_watchdog_meant_for_another_process_is_not_fed(
    bench: Bench, systemd: FakeSystemd, tmp_path: Path
) -> None:
    bench.install(HEAD + 'send("READY=1")\ntime.sleep(1000)\n')
    environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "s"), "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    async with bench.launched(environ=environ):
        await until(lambda: "READY=1" in systemd.hear())
        await anyio.sleep(0.2)
        assert "WATCHDOG=1" not in systemd.hear()


# rules


def test_only_decisions_roll_back_and_only_confirmed_programs_wait() -> None:
    assert set(COURSES) == set(Event)
    for event in Event:
        assert pause_after(event, trial=True, ran=1, last=8) == 0
    assert pause_after(Event.RESET, trial=False, ran=1, last=8) == 0
    assert pause_after(Event.WINDOW, trial=False, ran=1, last=8) == 0
    assert pause_after(Event.EXITED, trial=False, ran=1, last=8) == 16
    assert pause_after(Event.HUNG, trial=False, ran=59, last=16) == 30
    assert pause_after(Event.EXITED, trial=False, ran=60, last=30) == 0.5
    assert [next_pause(s) for s in (0.0, 0.5, 1, 2, 20, 30)] == [0.5, 1, 2, 4, 30, 30]


def test_a_pulse_counts_from_the_first_beat() -> None:
    pulse = Pulse(10)
    assert pulse.left(1000) is None
    pulse.beat(5)
    assert pulse.left(7) == 8
    assert pulse.left(16) == -1
    silent = Pulse(None)
    silent.beat(5)
    assert silent.left(7) is None


def test_how_a_program_ended_in_words() -> None:
    assert describe(0) == "exited with 0"
    assert describe(-9) == "was ended by SIGKILL"
    assert describe(-250) == "was ended by signal 250"


def test_a_program_whose_launcher_died_before_it_was_tied_kills_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 999_999_999)  # a parent that is not the parent
    child = Child([sys.executable, "-c", ""], dict(os.environ))
    assert child._process.wait() == 1


@pytest.mark.asyncio
async def test_a_notice_that_was_taken_is_not_lost_to_a_cancellation(tmp_path: Path) -> None:
    """A program that asks for a reset and exits at once: its end cancels who listens."""
    with listen(tmp_path) as listener:
        sender = Notifier(listener.address)
        for steps in range(8):
            got: list[dict[str, str]] = []
            async with anyio.create_task_group() as tasks:

                async def hear(got: list[dict[str, str]] = got) -> None:
                    got.append(await listener.receive())

                tasks.start_soon(hear)
                await anyio.sleep(0)
                sender.tell(RESET)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            assert len(got + listener.pending()) == 1
