"""What the README tells a newcomer to type works as it is typed; but for what serves, or needs a device elsewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from terminal import Terminal

import mgota as package

ROOT = Path(package.__file__).parents[1]
SERVES = {"run", "publish", "pull", "serve", "push", "status", "doctor", "install", "page", "commit", "rollback"}


def typed() -> list[str]:
    """The commands in the README's blocks that build something, in their order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    texts = [text for language, text in blocks if not language and "mgota " in text]
    lines = [re.sub(r"\s+#.*", "", line) for text in texts for line in text.splitlines()]
    commands = [command for line in lines for command in line.split(" && ")]
    building = re.compile(r"mgota (\w+)|cp |printf |python3 |mkdir ")
    found = [(command, building.match(command)) for command in commands]
    return [command for command, match in found if match and match[1] not in SERVES and "/etc/" not in command]


def test_what_a_newcomer_types_works(mgota: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = typed()
    for command in done:
        if command.startswith("mgota "):
            assert "note:" not in mgota.ok(*shlex.split(command)[1:]).err, command
        else:
            subprocess.run(["sh", "-c", command], check=True)
    assert {" ".join(command.split()[:3]) for command in done} > {
        "mgota sign app.pyz", "mgota provision app.signed.pyz", "mgota manifest sign", "mgota manifest rotate",
        "mgota manifest verify", "mgota manifest cosign",
    }  # fmt: skip
    assert (tmp_path / "device" / "a").read_bytes() == (tmp_path / "app.signed.pyz").read_bytes()
    assert '"version": "1.1.0"' in (tmp_path / "firmware" / "manifest.json").read_text()
