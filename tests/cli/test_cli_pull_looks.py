"""What `mgota pull` leaves alone: a dry run, an offer that is not wanted, a name that is mistyped; and what it says."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from site_server import IMAGE, METADATA, Site
from terminal import Shop, Terminal

from mgota.flash.files import FileLock

PLACES = {
    "slots": ["--slots", "d"],
    "stm32h5": ["--target", "stm32h5", "--flash", "chip.bin", "--state", "chip.state"],
    "stm32f4": ["--target", "stm32f4", "--part", "STM32F405xG", "--flash", "chip.bin", "--state", "chip.state"],
    "ch32v307": ["--target", "ch32v307", "--flash", "chip.bin", "--state", "chip.state"],
    "esp32": ["--target", "esp32", "--flash", "chip.bin", "--state", "chip.state"],
}
LOCKS = ("d/launcher", "d/lock", "chip.bin", "chip.bin.lock", "chip.state.power")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    with site.in_thread() as found:
        yield found + METADATA


def offer(site: Site, shop: Shop, version: str = "2.0.0") -> bytes:
    image = shop.image(version).read_bytes()
    site.publish(image, version, key=shop.key)
    return image


def everything(here: Path) -> dict[str, bytes | None]:
    """Every name below, and what it holds."""
    return {
        str(path.relative_to(here)): path.read_bytes() if path.is_file() else None for path in sorted(here.rglob("*"))
    }


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("runs", [False, True], ids=["stopped", "running"])
def test_a_dry_run_looks_at_a_device_whoever_runs_it_and_makes_nothing(
    site: Site, url: str, shop: Shop, mgota: Terminal, here: Path, place: list[str], runs: bool
) -> None:
    mgota.ok("provision", shop.image("1.0.0"), *place, "--key", shop.public)
    offer(site, shop)
    options = [*place, "--key", shop.public]
    with ExitStack() as held:
        for name in LOCKS:
            if runs and (here / name).parent.exists():
                held.enter_context(FileLock(here / name).hold())
        before = everything(here)
        done = mgota.ok("pull", url, *options, "--dry-run", "--json", "--mongoose-query", "gw 7").json
        assert (done["installed"], done["update"], done["reason"], done["error"]) == (False, True, "newer", None)
        assert "replaces 1.0.0" in done["text"]  # what is recorded of the running slot
        assert site.asked(METADATA)[0].query == "arch=1&version=1.0.0&id=gw+7&interval=0&boot=0"
        refused = mgota("pull", url, *options, "--dry-run", "--json", "--floor", "3")
        assert (refused.code, refused.json["reason"]) == (1, "below_floor")
        assert everything(here) == before
        if runs:
            assert "another process runs this device" in mgota("pull", url, *options).line


def test_a_dry_run_refuses_the_files_of_two_chips_by_their_names(
    site: Site, url: str, shop: Shop, mgota: Terminal, here: Path
) -> None:
    place = PLACES["stm32h5"]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    offer(site, shop)
    options = ["--key", shop.public, "--dry-run", "--current-version", "1"]
    other = [*PLACES["stm32f4"][:-1], "chip.state", *options]
    assert "is the flash memory of stm32h5" in mgota("pull", url, *other).line
    (here / "chip.bin").unlink()
    before = everything(here)
    assert "chip.bin is missing" in mgota("pull", url, *place, *options).line
    assert everything(here) == before


@pytest.mark.parametrize("place", [PLACES["slots"], PLACES["stm32h5"]], ids=["slots", "chip"])
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 1, "nobody knows which version runs"),
        (["--current-version", "2.0.0"], 3, "Same version"),
        (["--current-version", "1", "--floor", "2.1"], 1, "below the floor"),
        (["--current-version", "1", "--policy", "pinned=3"], 3, "is pinned"),
    ],
)
def test_for_an_offer_that_is_not_wanted_no_file_is_made(
    site: Site,
    url: str,
    shop: Shop,
    mgota: Terminal,
    here: Path,
    place: list[str],
    options: list[str],
    code: int,
    words: str,
) -> None:
    offer(site, shop)
    before = everything(here)
    for more in ([], ["--dry-run"]):
        done = mgota("pull", url, *place, "--key", shop.public, *options, *more)
        assert done.code == code
        assert words in done.out + done.err
    assert everything(here) == before


def test_for_a_manifest_that_is_refused_or_missing_no_file_is_made(
    site: Site, url: str, shop: Shop, mgota: Terminal, here: Path
) -> None:
    options = ["--slots", "dd", "--key", shop.public, "--current-version", "1", "--tries", "1"]
    site.publish(shop.image("2.0.0").read_bytes(), "2.0.0")
    before = everything(here)
    assert "not signed" in mgota("pull", url, *options).line
    assert "404" in mgota("pull", url + "x", *options).line
    assert everything(here) == before


def test_json_says_how_it_failed(site: Site, url: str, shop: Shop, mgota: Terminal, here: Path) -> None:
    place = ["--slots", "d", "--key", shop.public, "--tries", "1", "--json"]
    mgota.ok("provision", shop.image("1.0.0"), "--slots", "d")

    def failing(*options: object) -> dict[str, object]:
        done = mgota("pull", *options)
        assert done.code == 1
        found: dict[str, object] = json.loads(done.out)
        assert f"mgota: {found['error']}" == done.line
        assert not found["installed"]
        return found

    nothing = {"update": False, "reason": None, "text": None, "manifest": None}
    for options, words in (
        ([url, *place], "answered 404"),
        (["http://127.0.0.1:9/x.json", *place], "given up after 1 tries"),
        (["http://127.0.0.1:9/x.json", "--slots", "d", "--json"], "not encrypted"),
        ([url, "--slots", "d", "--json", "--key", "missing.pem"], "missing.pem"),
    ):
        found = failing(*options)
        assert words in str(found.pop("error"))
        assert found == {"installed": False, **nothing}
    image = offer(site, shop)
    del site.files[IMAGE]
    found = failing(url, *place)
    assert (found["update"], found["reason"]) == (True, "newer")
    assert "404" in str(found["error"])
    site.put(IMAGE, image[:-1] + bytes([image[-1] ^ 1]))
    assert "bad signature" in str(failing(url, *place)["error"])
    site.put(IMAGE, image)
    done = mgota.ok("pull", url, *place).json
    assert (done["installed"], done["error"]) == (True, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--slots", "no/where"], "lies in no directory"),
        (["--slots", "d", "--current-version", ""], "--current-version"),
        (["--slots", "d", "--current-version", "1 0"], "--current-version"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(mgota: Terminal, here: Path, options: list[str], words: str) -> None:
    done = mgota("pull", "https://updates.example/fw.json", *options)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert everything(here) == {}


def test_a_refusal_names_what_was_asked_for_and_no_secret(site: Site, url: str, shop: Shop, mgota: Terminal) -> None:
    place = ["--slots", "d", "--key", shop.public, "--current-version", "1"]
    secret = url.replace("http://", "http://user:word@")
    assert mgota("pull", f"{secret}?token=word", *place).line == f"mgota: {url}: the server answered 404"
    offer(site, shop)
    del site.files[IMAGE]
    assert mgota("pull", url, *place).line == f"mgota: {url.replace(METADATA, IMAGE)}: the server answered 404"


def test_with_an_unreadable_record_a_dry_run_says_what_a_pull_would(
    site: Site, url: str, shop: Shop, mgota: Terminal, here: Path
) -> None:
    offer(site, shop)
    mgota.ok("provision", shop.image("1.0.0"), "--slots", "d")
    (here / "d" / "state").write_bytes(b"garbage")
    for more in ([], ["--dry-run"]):
        done = mgota("pull", url, "--slots", "d", "--key", shop.public, "--current-version", "1", "--json", *more)
        assert (done.code, done.json["update"], done.json["reason"]) == (1, False, "unknown_state")
