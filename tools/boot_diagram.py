"""Draws the boot table of `mgota.core.boot` into DESIGN.md.

Use:
python tools/boot_diagram.py            rewrite the block between the markers
python tools/boot_diagram.py --check    exit 1 if DESIGN.md is stale
"""

import sys
from pathlib import Path

from mgota.core.boot import TABLE, Action, Guard, Row, Running

DESIGN = Path(__file__).parent.parent / "DESIGN.md"
BEGIN, END = "<!-- boot table: begin -->\n", "<!-- boot table: end -->\n"

# Where a row leads: to another record, or back to this one by way of a reset.
LEADS_TO = {
    Action.FIRST_START: "CONFIRMED",
    Action.RUN: "CONFIRMED",
    Action.TRIAL: "FAILED",
    Action.SELECT_TRIAL: "TESTING",
    Action.GIVE_UP: "CONFIRMED",
    Action.ROLL_BACK: "FAILED",
    Action.STUCK: "CONFIRMED",
    Action.ROLLED_BACK: "CONFIRMED",
    Action.RUN_UNKNOWN: "unreadable",
}


def table() -> str:
    """The table as people read it."""
    lines = ["| record | running slot | and | what the boot does |", "|---|---|---|---|"]
    lines += [f"| {row.recorded} | {row.running} | {row.guard} | {row.action} |" for row in TABLE]
    return "\n".join(lines) + "\n"


def diagram() -> str:
    """The table as a state diagram, with the two arrows that are no boot's: activate and commit."""
    arrows = [f"    {row.recorded} --> {LEADS_TO[row.action]}: {label(row)}" for row in TABLE]
    arrows += [
        "    CONFIRMED --> TESTING: activate, then select and reset",
        "    FAILED --> CONFIRMED: commit, in the trial slot",
    ]
    return "```mermaid\nstateDiagram-v2\n    [*] --> absent\n" + "\n".join(arrows) + "\n```\n"


def label(row: Row) -> str:
    """An arrow's text: where the boot found itself, and what it did."""
    where = "" if row.running is Running.ANY else f"in {row.running}, "
    guard = "" if row.guard is Guard.ALWAYS else f"{row.guard}, "
    return f"{where}{guard}{row.action}".replace(":", " -")


def main() -> int:
    """Rewrite or check DESIGN.md."""
    text = DESIGN.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    fresh = f"{head}{BEGIN}\n{table()}\n{diagram()}\n{END}{tail}"
    if "--check" in sys.argv[1:]:
        return int(fresh != text)
    DESIGN.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
