"""How to prove that a backend keeps its promises, and survives a power cut at any moment.

Three questions about a backend of your own, in the order in which they are best asked. None of this needs pytest.

**Does it do what a backend promises?** The batteries assert every sentence of `mgota.ports`:

    await check_flash_backend(lambda: MyBackend(chip))        also: check_nor_flash, check_state_store

**Does it survive a power cut?** Write it for a `NorFlash`, and let it live on a simulated one. Each life, an update, a
commit, a rollback, is lived once for every operation and each of the eight ways in which a cut tears one:

    def build(flash: NorSimulator) -> FlashBackend:
        return MyBackend(flash, flash.register("option bytes"))

    report = anyio.run(every_power_cut, build, geometry)
    report.check()                      # AssertionError with what was lost, and how to lose it again
    print(report)                       # 284 runs: 6 lives of 49 operations in all, 8 modes, 278 cuts, … 0 bricks

`build` is called at every boot: memory is lost, and what survives is `flash`, its cells and its registers. With
`recuts=ALL_MODES` the power is cut again at every operation of every recovery. `examples/prove_custom_backend.py` is
all of it in one file.

**Does it survive bad flash?** `BadFlash` makes bits stick and operations fail. For anything smaller, drive it by hand:

    flash = NorSimulator(geometry)
    power = PowerSupply(flash, seed=1)
    power.cut_at(7, CutMode.VALID_THEN_BLANK)
    try:
        await my_swap(flash)
    except PowerCut:
        power.restore()
    await my_recovery(flash)

**Do files survive a crash?** `every_crash` records what code does below a directory, writes, fsyncs, renames, and
replays every state that a crash may leave:

    every_crash(action, check, workspace)

**Does it survive a bad network?** `fault_proxy` stands before a real server and cuts, resets, stalls, delays, throttles
and duplicates at the bytes that a script names:

    async with fault_proxy("127.0.0.1", 8000, [[Fault.cut(1000)], [Fault.reset(0)]]) as proxy:
        await my_client(proxy.port)
"""

from mgota.flash.simulator import Cell, Kind, NorSimulator, Operation, Operations, Register
from mgota.flash.virtual import VirtualReset, VirtualWatchdog
from mgota.testing.backend import check_flash_backend
from mgota.testing.bench import Restarted
from mgota.testing.contract import check_nor_flash, check_state_store
from mgota.testing.crash_states import CrashPoint, CrashState, CrashStates, Order
from mgota.testing.crashes import CrashFailure, CrashReport, every_crash
from mgota.testing.cuts import every_power_cut
from mgota.testing.faults import BadFlash, Flaw
from mgota.testing.jobs import carry_out_now
from mgota.testing.power import ALL_MODES, CutMode, PowerCut, PowerSupply
from mgota.testing.proxy import Effect, Fault, FaultProxy, Way, fault_proxy
from mgota.testing.recorder import FileRecorder
from mgota.testing.report import Brick, Cut, Life, Report

__all__ = [
    "ALL_MODES",
    "BadFlash",
    "Brick",
    "Cell",
    "CrashFailure",
    "CrashPoint",
    "CrashReport",
    "CrashState",
    "CrashStates",
    "Cut",
    "CutMode",
    "Effect",
    "Fault",
    "FaultProxy",
    "FileRecorder",
    "Flaw",
    "Kind",
    "Life",
    "NorSimulator",
    "Operation",
    "Operations",
    "Order",
    "PowerCut",
    "PowerSupply",
    "Register",
    "Report",
    "Restarted",
    "VirtualReset",
    "VirtualWatchdog",
    "Way",
    "carry_out_now",
    "check_flash_backend",
    "check_nor_flash",
    "check_state_store",
    "every_crash",
    "every_power_cut",
    "fault_proxy",
]
