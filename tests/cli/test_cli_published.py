"""Both ends: what `mgota manifest` wrote and `mgota publish` serves is what `mgota pull` installs, or refuses."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import Done, Serving, Shop, Terminal
from test_cli_publish import publishing
from test_cli_pull import nginx

from mgota.core.keys import PrivateKey

DONE, FAILED, NOTHING = 0, 1, 3


class Field:
    """A device, and the server that it asks."""

    def __init__(self, shop: Shop, mgota: Terminal, url: str) -> None:
        self.shop, self.mgota, self.url = shop, mgota, url
        self.shelf, self.slots = shop.directory / "shelf", shop.directory / "slots"

    def offer(self, version: str, *options: object, key: str = "private.pem") -> None:
        image = self.shop.image(version, 20_000).rename(self.shelf / f"fw-{version}.bin")
        signed = ["--key", self.shop.directory / key, "-o", self.shelf / "manifest.json"]
        self.mgota.ok("manifest", "sign", image, *signed, *options)

    def pull(self, *options: object) -> Done:
        device = ["--slots", self.slots, "--key", self.shop.public]
        return self.mgota("pull", f"{self.url}/manifest.json", *device, *options)

    def live(self) -> None:
        """The trial begins, and somebody commits it."""
        with Serving("--slots", self.slots, "--key", self.shop.public) as serving:
            serving.until(lambda now: now["state"] == "FAILED")
            self.mgota.ok("commit", serving.url)
            serving.until(lambda now: now["state"] == "CONFIRMED")

    @property
    def record(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.slots / "state").read_text().splitlines()[1])
        return found


@pytest.fixture
def field(shop: Shop, mgota: Terminal) -> Iterator[Field]:
    (shop.directory / "shelf").mkdir()
    with publishing(shop.directory / "shelf") as (url, _):
        found = Field(shop, mgota, url)
        mgota.ok("provision", shop.image("1.0"), "--slots", found.slots, "--key", shop.public)
        yield found


def test_a_life_of_signed_manifests(field: Field, tmp_path: Path) -> None:
    field.offer("1.1", "--seq", 5, "--hw", "rev-b")
    assert "this device has no hardware id" in field.pull().err
    done = field.pull("--hardware", "rev-b", "--mongoose-query", "dev7")
    assert done.code == DONE, done.err
    field.live()
    assert (field.record["floor"], field.record["sequence"]) == ("1.1", 5)
    assert field.pull("--hardware", "rev-b").code == NOTHING

    field.offer("1.2", "--seq", 4)  # what somebody kept from earlier
    done = field.pull()
    assert (done.code, "sequence 4 is lower than 5" in done.err) == (FAILED, True)
    field.offer("1.0.1", "--seq", 6)
    assert "below the floor 1.1" in field.pull("--policy", "different").err

    with urllib.request.urlopen(f"{field.url}/devices", timeout=30) as reply:
        (device,) = json.loads(reply.read())["devices"]
    assert (device["id"], device["version"], device["boot"]) == ("dev7", "1.0", "CONFIRMED")


@pytest.mark.program("nginx")
def test_static_hosting_as_the_readme_has_it(field: Field, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    snippet = readme[readme.index("location /firmware/") : readme.index("```", readme.index("location /firmware/"))]
    www = tmp_path / "www"
    www.mkdir()
    field.shelf = field.shelf.rename(www / "firmware")
    for path in (tmp_path, www, field.shelf):
        path.chmod(0o755)  # nginx may read it as somebody else
    field.offer("1.1", "--seq", 1)
    with nginx(www, snippet.replace("/srv", str(www))) as url:
        field.url = f"{url}/firmware"
        for name, caching in (("manifest.json", "no-cache"), ("fw-1.1.bin", "public, max-age=31536000, immutable")):
            with urllib.request.urlopen(f"{field.url}/{name}", timeout=30) as reply:
                assert reply.headers["Cache-Control"] == caching
                assert reply.headers["ETag"]
                assert reply.headers["Accept-Ranges"] == "bytes"
        done = field.pull()
        assert done.code == DONE, done.err


def test_keys_are_rotated_in_the_field(field: Field, tmp_path: Path) -> None:
    new = PrivateKey.generate()
    (tmp_path / "new.pem").write_bytes(new.public.pem())
    (tmp_path / "new-private.pem").write_bytes(new.pem())
    signers = ["--key", tmp_path / "private.pem", "--key", tmp_path / "new-private.pem"]
    way = ["--from", field.shop.public, "--to", tmp_path / "new.pem", "-o", tmp_path / "rotation.json"]
    field.mgota.ok("manifest", "rotate", *way, *signers)

    old, field.shop.key = field.shop.key, new  # who signs images from now on
    field.offer("1.1", "--seq", 1, "--rotation", tmp_path / "rotation.json", key="new-private.pem")
    done = field.pull()
    assert done.code == DONE, done.err
    field.live()

    field.shop.key = old
    field.offer("1.2", "--seq", 2)
    done = field.pull()
    assert (done.code, "not signed by a trusted key" in done.err) == (FAILED, True)
    assert field.mgota("pull", f"{field.url}/manifest.json", "--slots", field.slots, "--key", tmp_path / "new.pem",
                       "--current-version", "1.1").code == FAILED  # fmt: skip
